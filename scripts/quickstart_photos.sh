#!/bin/sh
# Set up, then all of it for a folder of photos: split it, train a large network, distil it into a
# small one, look at both, export the small one and ask it. The photos are JPEG files made of the
# digits that come with scikit-learn. Everything is kept in save/quickstart_photos/; a second start
# goes on, or shows the end again.
set -eu
cd "$(dirname "$0")/.."
echo "quickstart_photos: JPEG files of handwritten digits, a folder a class; a wrn_16_2 teacher on"
echo "all training images, resnet8 on a tenth of them, alone and with KD; report, export, prediction."
echo "About 3 minutes on 2 CPU cores, and a few more for installing packages the first time."
sh scripts/setup.sh requirements.txt requirements-report.txt requirements-export.txt
python=.venv/bin/python
save=save/quickstart_photos
photos=$save/photos
flags="--dataset folder --data_dir $photos --image_size 16 --save_dir $save --resume"
tenth="--train_fraction 0.1 --epochs 60"

[ -d "$photos" ] || $python scripts/digits_as_photos.py "$photos"
$python train_teacher.py --model wrn_16_2 $flags --epochs 15
teacher=$(ls "$save"/models/wrn_16_2_photos_*_trial_1/wrn_16_2_last.pth)
$python train_teacher.py --model resnet8 $flags $tenth
$python train_student.py --path_t "$teacher" --distill kd --model_s resnet8 $flags $tenth
student=$(ls "$save"/student_model/S_resnet8_T_wrn_16_2*_kd_*_trial_1/resnet8_last.pth)
$python tools/report.py "$save" --quick --out "$save/report"
$python tools/export.py "$student" --out "$save/exported"
echo
$python scripts/compare.py "$save"
echo
$python tools/predict.py "$save/exported" "$photos/7" --top 3 | head -n 3
