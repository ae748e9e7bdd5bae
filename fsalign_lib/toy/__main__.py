"""Distil the shipped student again: `python -m fsalign_lib.toy`."""

from safetensors.torch import save_file

from fsalign_lib.toy import STUDENT_FILE, ToyTeacher, distil

if __name__ == "__main__":
    save_file(distil(ToyTeacher()).state_dict(), STUDENT_FILE)
