#!/bin/bash
# A recipe's language model on several machines with several GPUs each, which share the working folder; requeued it goes on
# from its checkpoint. Before: tresse recipe RECIPE --until vocabulary.
#     sbatch --nodes=4 --export=ALL,RECIPE=paper-1b train/slurm/train.sh
#SBATCH --job-name=tresse-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=48:00:00
#SBATCH --requeue
set -euo pipefail
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)  # not head: a list that is cut off would end the script
export FIRST
# each machine starts the processes of its GPUs
srun bash -c 'accelerate launch --config_file train/fsdp.yaml \
    --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * SLURM_GPUS_ON_NODE))" \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$FIRST" --main_process_port 29500 \
    -m demo.cli train slm --recipe "$RECIPE"'
