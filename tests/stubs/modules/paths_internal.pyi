data_path: str
models_path: str
extensions_dir: str
