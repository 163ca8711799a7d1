#!/bin/sh
# Set up, then the main job on a data set that comes with scikit-learn: train a small teacher, the
# student alone, the student with the teacher's help; print the comparison. About 3 minutes on 2 cores.
set -eu
cd "$(dirname "$0")/.."
sh scripts/setup.sh
python=.venv/bin/python
recipe="--dataset digits --epochs 12 --trial 0 --overwrite"

$python train_teacher.py --model resnet20 $recipe
$python train_teacher.py --model resnet8 $recipe
$python train_student.py --path_t save/models/resnet20_digits_trial_0/ckpt_epoch_12.pth \
    --distill kd --model_s resnet8 $recipe
$python scripts/compare.py \
    save/models/resnet20_digits_trial_0 \
    save/models/resnet8_digits_trial_0 \
    save/student_model/S_resnet8_T_resnet20_digits_kd_r_0.1_a_0.9_b_0_trial_0
