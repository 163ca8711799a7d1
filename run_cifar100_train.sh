#!/bin/sh
# All experiments of one method on one pair of CIFAR-100 networks: the method by itself, and behind
# scale decoupling over 1, 2 and 3 scales; each of them plain and with logit standardization.
#
#   ./run_cifar100_train.sh [flags of train_student.py]
#   METHOD=dkd MODEL=wrn_40_2_resnet8x4 GPU_ID=1 BASE_TEMP=2 KD_WEIGHT=18 ./run_cifar100_train.sh
#   DRY_RUN=1 ./run_cifar100_train.sh

METHOD=${METHOD:-kd}                     # kd, dkd or rld
MODEL=${MODEL:-resnet32x4_resnet8x4}     # a file of configs/cifar100/METHOD
GPU_ID=${GPU_ID:-}                       # empty: the first GPU, or the CPU where there is none
BASE_TEMP=${BASE_TEMP:-}                 # empty: what was published for this pair
KD_WEIGHT=${KD_WEIGHT:-}

cd "$(dirname "$0")" || exit 2
. scripts/batch.sh
METHOD=${METHOD#sdd_}
for kind in "$METHOD" "sdd_$METHOD"; do
    if [ ! -f "configs/cifar100/$kind/$MODEL.yaml" ]; then
        echo "error: no configs/cifar100/$kind/$MODEL.yaml: METHOD is kd, dkd or rld, and MODEL the name of a file there" >&2
        exit 2
    fi
done
[ -z "$GPU_ID" ] || set -- --gpu "$GPU_ID" "$@"

both() { # plain, then standardized
    train tools/train.py "$@"
    train tools/train.py "$@" --logit-stand ${BASE_TEMP:+--base-temp "$BASE_TEMP"} \
        ${KD_WEIGHT:+--kd-weight "$KD_WEIGHT"}
}

both --cfg "configs/cifar100/$METHOD/$MODEL.yaml" "$@"
for scales in '[1]' '[1,2]' '[1,2,4]'; do
    both --cfg "configs/cifar100/sdd_$METHOD/$MODEL.yaml" --M "$scales" "$@"
done
finish
