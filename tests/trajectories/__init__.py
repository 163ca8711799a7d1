"""How golden trajectories are replayed; see README.md in `golden/trajectories`.

`cases` reads them and compares, `names` finds a published tensor here, `replay` trains.
"""
