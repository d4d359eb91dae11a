#!/bin/bash
# A training on one machine of 8 GPUs that puts itself back into SLURM's queue when its time is up:
#
#     sbatch training/slurm.sh --config RECIPE --output_dir OUT
#
#SBATCH --gpus=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# 120 seconds before the end, and to this script alone, which passes it on.
#SBATCH --signal=B:TERM@120

cyclip train --accelerate_config one_node --num_processes 8 --resume_from_checkpoint "$@" &
training=$!
trap 'kill -TERM $training' TERM
wait $training # until the signal
wait $training # until the checkpoint is written
status=$?
# That of a training that was told to stop. Any other is an end, or a fault that would come again.
if [ $status -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
