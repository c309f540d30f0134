# SyVLA on a CPU: train small models, simulate, serve.
#   docker build -f docker/cpu.Dockerfile -t syvla:cpu .
#   docker run --rm -p 8000:8000 -v "$PWD/outputs:/outputs" syvla:cpu syvla-serve --model /outputs/demo/checkpoint --host 0.0.0.0 --token-file /outputs/token
FROM python:3.12-slim
RUN apt-get update && apt-get install --yes --no-install-recommends libegl1 libgl1-mesa-dri libopengl0 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/syvla
COPY . .
# The index of PyTorch's CPU builds saves gigabytes: --build-arg TORCH_INDEX=...; by default torch comes with CUDA.
ARG TORCH_INDEX
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -c constraints/python-3.12.txt torch
RUN pip install --no-cache-dir -c constraints/python-3.12.txt '.[train,sim,peft,serve]'
RUN useradd --create-home robot
USER robot
WORKDIR /home/robot
ENV MUJOCO_GL=egl
CMD ["syvla", "env"]
