#!/bin/bash
# A recipe's corpus on as many machines as the array has tasks, which share the working folder; one that is lost or requeued
# costs the shards that it had begun. Before: tresse recipe RECIPE --until units.
#     sbatch --export=ALL,RECIPE=paper-360m train/slurm/prepare.sh
#SBATCH --job-name=tresse-corpus
#SBATCH --array=0-15
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
tresse recipe "$RECIPE" --until corpus --workers "$SLURM_CPUS_PER_TASK"
