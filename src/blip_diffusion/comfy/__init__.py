"""ComfyUI nodes over the same generation requests as the command line; ComfyUI loads the folder comfyui/."""
