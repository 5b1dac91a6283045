"""The gateway: the ASGI application, the Serve application and `rayward serve`."""
