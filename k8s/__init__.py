"""On which machines? KubeRay manifests, the image, and the commands that size and write them."""
