"""The one training loop: any task, any model, from one device to a mesh of them."""
