#!/bin/sh
# Set up, then the main job on a data set that comes with scikit-learn: a small teacher learns from
# all of its training images; students learn from a tenth of them, alone and with the teacher's help.
# Everything is kept in save/quickstart/; a second start goes on, or shows the table again.
set -eu
cd "$(dirname "$0")/.."
echo "quickstart: handwritten digits; a wrn_16_2 teacher on all 898 training images, then resnet8 on"
echo "a tenth of them, three seeds alone and three with KD. About 2 minutes on 2 CPU cores, and a few"
echo "more for installing packages the first time. Runs go to save/quickstart/."
sh scripts/setup.sh
python=.venv/bin/python
save=save/quickstart
flags="--dataset digits --image_size 16 --save_dir $save --resume"
tenth="--train_fraction 0.1 --epochs 60"

$python train_teacher.py --model wrn_16_2 $flags --epochs 20 --trial 0
teacher=$(ls "$save"/models/wrn_16_2_digits_*trial_0/wrn_16_2_last.pth)
for trial in 1 2 3; do
    $python train_teacher.py --model resnet8 $flags $tenth --trial $trial
    $python train_student.py --path_t "$teacher" --distill kd --model_s resnet8 $flags $tenth \
        --trial $trial
done
echo
$python scripts/compare.py "$save"
echo
echo "What it shows: with few labelled images a student learns more from the teacher's soft answers"
echo "than from the labels alone. README.md goes on from here."
