"""`python -m tests.webui --webui DIR --python PYTHON`: the tab inside a WebUI that is already installed."""
