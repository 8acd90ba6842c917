models_path: str
data_path: str
extensions_dir: str
