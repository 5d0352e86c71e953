"""Taking a network home: to torchvision, timm, safetensors, ONNX and torch.export, each read back and compared."""
