#!/bin/sh
# Train networks on CIFAR-100 by themselves: the teachers, and the students to compare with.
#
#   sh scripts/run_cifar_vanilla.sh [flags of train_teacher.py]
#   MODELS="resnet8x4 vgg8" TRIALS="1 2 3" sh scripts/run_cifar_vanilla.sh
#   DRY_RUN=1 sh scripts/run_cifar_vanilla.sh

cd "$(dirname "$0")/.." || exit 2
. scripts/batch.sh

for trial in ${TRIALS:-1}; do
    for model in ${MODELS:-resnet20 resnet32 resnet56 resnet110 resnet8x4 resnet32x4 wrn_16_2 \
        wrn_40_1 wrn_40_2 vgg8 vgg13 ResNet50 MobileNetV2 ShuffleV1 ShuffleV2}; do
        train train_teacher.py --model "$model" --trial "$trial" "$@"
    done
done
finish
