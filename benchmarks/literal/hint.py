"""FitNets, literally: the mean squared difference of two maps (eq. 3)."""


def hint(regressed, t):
    """The student's map through its regressor and the teacher's, (B, C, H, W) each -> scalar"""
    return (regressed - t).pow(2).mean()
