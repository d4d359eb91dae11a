#!/bin/bash
# A training on one machine of 8 GPUs that puts itself back into SLURM's queue when its time is up:
#
#     sbatch training/slurm.sh --config RECIPE --output_dir OUT
#
#SBATCH --nodes=1
#SBATCH --gpus=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# 120 seconds before the end, and to this script alone, which passes it on.
#SBATCH --signal=B:USR1@120

cyclip train --accelerate_config one_node --num_processes 8 --resume_from_checkpoint "$@" &
training=$!
# SIGUSR1, since torchrun kills its processes 30 seconds after SIGTERM, however long a checkpoint takes.
trap 'kill -USR1 $training' USR1 TERM
# A signal ends `wait`, so it is called until the training is gone.
while kill -0 $training 2> /dev/null; do
    wait $training
done
wait $training
status=$?
# That of a training that was told to stop. Any other is an end, or a fault that would come again.
if [ $status -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
