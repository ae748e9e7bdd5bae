"""Distil the shipped student again: `python -m fsalign_lib.toy`."""

import argparse

from safetensors.torch import save_file

from fsalign_lib.toy import STUDENT_FILE, ToyTeacher, distil

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    save_file(distil(ToyTeacher()).state_dict(), STUDENT_FILE)
