import torch

device: torch.device
