#!/bin/bash
# A recipe's language model on several machines with several GPUs each, which share the working folder; requeued it goes on
# from its checkpoint. Before: tresse recipe RECIPE --until vocabulary.
#     sbatch --nodes=4 --export=ALL,RECIPE=paper-1b train/slurm/train.sh
# Every GPU has the whole model (train/ddp.yaml); of a recipe whose name ends in billions of parameters, a share of it
# (train/fsdp.yaml). CONFIG=FILE, after RECIPE, chooses either.
#SBATCH --job-name=tresse-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=48:00:00
#SBATCH --requeue
set -euo pipefail
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)  # not head: a list that is cut off would end the script
case "$RECIPE" in
    *[0-9]b | *[0-9]b.yaml) CONFIG=${CONFIG:-train/fsdp.yaml} ;;
    *) CONFIG=${CONFIG:-train/ddp.yaml} ;;
esac
export FIRST CONFIG
# each machine starts the processes of its GPUs
srun bash -c 'accelerate launch --config_file "$CONFIG" \
    --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * SLURM_GPUS_ON_NODE))" \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$FIRST" --main_process_port 29500 \
    -m demo.cli train slm --recipe "$RECIPE"'
