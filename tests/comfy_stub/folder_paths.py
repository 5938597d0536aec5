"""Where ComfyUI's user keeps files: tests set both names."""

from pathlib import Path

models_dir = ""
folders: dict[str, list[str]] = {"diffusers": []}


def add_model_folder_path(folder_name: str, full_folder_path: str) -> None:
    paths = folders.setdefault(folder_name, [])
    if full_folder_path not in paths:
        paths.append(full_folder_path)


def get_folder_paths(folder_name: str) -> list[str]:
    return list(folders[folder_name])


def get_filename_list(folder_name: str) -> list[str]:
    found = {
        file.relative_to(folder).as_posix() for folder in folders[folder_name] for file in Path(folder).rglob("*.*")
    }
    return sorted(found)


def get_full_path_or_raise(folder_name: str, filename: str) -> str:
    for folder in folders[folder_name]:
        if (Path(folder) / filename).is_file():
            return str(Path(folder) / filename)
    raise FileNotFoundError(filename)


def get_save_image_path(filename_prefix: str, output_dir: str) -> tuple[str, str, int, str, str]:
    """(folder, name, next number, subfolder, prefix)"""
    folder = Path(output_dir) / Path(filename_prefix).parent
    folder.mkdir(parents=True, exist_ok=True)
    name = Path(filename_prefix).name
    number = len(list(folder.glob(f"{name}_*"))) + 1
    return str(folder), name, number, str(Path(filename_prefix).parent), filename_prefix
