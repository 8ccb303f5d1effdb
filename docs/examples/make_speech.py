"""Make recordings to transcribe: short WAV files in which a synthetic voice names three cities.

Needs two programs of the distribution (`apt-get install espeak-ng sox`), and then, for a hundred
files in the folder `speech`:

    python3 -m docs.examples.make_speech 100
"""

import csv
import random
import subprocess
import sys
from pathlib import Path

CITIES = [
    "alabama", "arizona", "boston", "chicago", "denver",
    "florida", "houston", "memphis", "montana", "virginia",
]  # fmt: skip


def speak(words: list[str], path: Path) -> None:
    """What the recogniser wants: 16,000 samples a second, 16 bits, one channel."""
    voice = ["espeak-ng", "-v", "en-us+f2", "-s", "140", "--stdout", ", ".join(words)]
    speech = subprocess.run(voice, stdout=subprocess.PIPE, check=True).stdout
    form = ["-r", "16000", "-b", "16", "-c", "1"]
    subprocess.run(["sox", "-t", "wav", "-", *form, str(path), "pad", "0.2", "0.3"],
                   input=speech, check=True)  # fmt: skip


def make_speech(folder: Path, number: int) -> None:
    """So many files, the same ones each time, and `said.csv`, which has what is said in each."""
    chance = random.Random(number)
    folder.mkdir(exist_ok=True)
    with open(folder / "said.csv", "w", newline="") as file:
        rows = csv.writer(file)
        for index in range(number):
            path = folder / f"{index:04}.wav"
            words = chance.sample(CITIES, 3)
            speak(words, path)
            rows.writerow([path, " ".join(words)])


if __name__ == "__main__":
    make_speech(Path("speech"), int(sys.argv[1]) if len(sys.argv) > 1 else 100)
