#!/bin/sh
# Distil one student from one teacher, or none, on CIFAR-100 by every method, each with its paper's weights.
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
alone=$("$PYTHON" -c 'from distiller_zoo import METHODS; print(*(m for m in METHODS if not METHODS[m].has_teacher))') || exit 2
student=${STUDENT:-resnet8x4}

for trial in ${TRIALS:-1}; do
    for method in ${METHODS:-$every}; do
        case " $alone " in
        *" $method "*) train train_student.py --distill "$method" --model_s "$student" --trial "$trial" "$@" ;;
        *)
            train train_student.py --distill "$method" --model_t "${TEACHER:-resnet32x4}" \
                --model_s "$student" --trial "$trial" ${PATH_T:+--path_t "$PATH_T"} "$@"
            ;;
        esac
    done
done
finish
