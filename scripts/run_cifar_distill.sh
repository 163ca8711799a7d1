#!/bin/sh
# Distil one student from one teacher on CIFAR-100 by every method, each with its paper's weights.
#
#   sh scripts/run_cifar_distill.sh [flags of train_student.py]
#   TEACHER=wrn_40_2 STUDENT=wrn_16_2 METHODS="kd crd" TRIALS="1 2 3" sh scripts/run_cifar_distill.sh
#   DRY_RUN=1 sh scripts/run_cifar_distill.sh
#
# The teacher is the published one, fetched when it is not there, or PATH_T.

cd "$(dirname "$0")/.." || exit 2
. scripts/batch.sh

# dcd is icd under its newer name.
every=$("$PYTHON" -c 'from distiller_zoo import METHODS; print(*(m for m in METHODS if m != "dcd"))') || exit 2
teacher=${TEACHER:-resnet32x4}
[ -z "${PATH_T:-}" ] || set -- --path_t "$PATH_T" "$@"

for trial in ${TRIALS:-1}; do
    for method in ${METHODS:-$every}; do
        train train_student.py --distill "$method" --model_t "$teacher" \
            --model_s "${STUDENT:-resnet8x4}" --trial "$trial" "$@"
    done
done
finish
