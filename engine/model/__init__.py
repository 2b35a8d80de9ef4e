"""MIND: behavior windows in, interest vectors out. Needs only torch, numpy and safetensors."""
