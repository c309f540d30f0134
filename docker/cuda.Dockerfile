# SyVLA on NVIDIA GPUs: training with accelerate and DeepSpeed, RL, serving. torch's wheel brings CUDA's libraries.
#   docker build -f docker/cuda.Dockerfile -t syvla:cuda .
#   docker run --rm --gpus all --shm-size 16g -v "$PWD:/work" -w /work syvla:cuda syvla-finetune --help
FROM python:3.12-slim
RUN apt-get update && apt-get install --yes --no-install-recommends libegl1 libgl1-mesa-dri libopengl0 gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/syvla
COPY . .
RUN pip install --no-cache-dir -c constraints/python-3.12.txt '.[train,sim,peft,serve,rl,deepspeed]'
RUN useradd --create-home robot
USER robot
WORKDIR /home/robot
CMD ["syvla", "env"]
