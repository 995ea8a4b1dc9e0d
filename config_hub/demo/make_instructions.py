"""Write a small instruction set about the novels: questions with answers in our own words, and sentences of the books.

    python make_instructions.py ../text/train ../instructions

The same text gives the same files, `train.jsonl` and `val.jsonl`. Every question is put in several ways, and one way of
each is kept for validation: a falling validation loss means that answers were learned, not questions.
"""

import json
import random
import re
import sys
from pathlib import Path

SEED = 1813
SENTENCES_PER_NAME = 14
VALIDATION_SENTENCES_PER_NAME = 1
FOLLOW_UPS = {"train": 150, "val": 12}
MOST_EARLIER_TURNS = 3

WHO = {
    "Elizabeth Bennet": "She is the second of five sisters, lively and quick, and she marries Mr. Darcy.",
    "Jane Bennet": "She is the eldest of five sisters, gentle and handsome, and she marries Mr. Bingley.",
    "Mary Bennet": "She is the third of five sisters, who reads great books and is fond of the pianoforte.",
    "Kitty Bennet": "She is the fourth of five sisters, who coughs, and follows Lydia in everything.",
    "Lydia Bennet": "She is the youngest of five sisters, who is fond of officers and runs away with Mr. Wickham.",
    "Mr. Bennet": "He is a gentleman of Hertfordshire, who has five daughters and loves his library.",
    "Mrs. Bennet": "She is the mother of five daughters, and the business of her life is to get them married.",
    "Mr. Darcy": "He is a rich and proud gentleman of Derbyshire, and the master of Pemberley.",
    "Mr. Bingley": "He is a young man of large fortune, who takes Netherfield and falls in love with Jane.",
    "Miss Bingley": "She is the sister of Mr. Bingley, and she wishes to marry Mr. Darcy.",
    "Mr. Wickham": "He is an officer with pleasing manners, who tells lies about Mr. Darcy.",
    "Mr. Collins": "He is a foolish clergyman, the cousin of Mr. Bennet, and he will have Longbourn one day.",
    "Charlotte Lucas": "She is the sensible friend of Elizabeth, and she marries Mr. Collins.",
    "Lady Catherine": "She is a great lady, the aunt of Mr. Darcy, and everybody must do as she says.",
    "Colonel Fitzwilliam": "He is the cousin of Mr. Darcy, and a perfect gentleman in his manners.",
    "Mrs. Gardiner": "She is the kind aunt of Elizabeth, and she lives in London.",
    "Emma Woodhouse": "She is handsome, clever, and rich, and she makes matches for all her friends.",
    "Mr. Woodhouse": "He is the father of Emma, and he is afraid of cold air, cake and marriages.",
    "Mr. Knightley": "He is the master of Donwell Abbey, who tells Emma her faults and marries her.",
    "Harriet Smith": "She is the pretty young friend of Emma, and she marries Robert Martin.",
    "Frank Churchill": "He is the son of Mr. Weston, and he is secretly engaged to Jane Fairfax.",
    "Miss Bates": "She is a poor and happy old maid of Highbury, who talks all day long.",
    "Mr. Elton": "He is the young vicar of Highbury, who wishes to marry Emma and brings home another lady.",
    "Elinor Dashwood": "She is the elder sister of Marianne, full of sense, and she marries Edward Ferrars.",
    "Marianne Dashwood": "She is the sister of Elinor, full of feeling, and she marries Colonel Brandon.",
    "Mr. Willoughby": "He is a handsome young man, who deserts Marianne and marries for money.",
    "Colonel Brandon": "He is a grave and kind man of five and thirty, who loves Marianne.",
    "Fanny Price": "She is a poor niece, gentle and shy, who grows up at Mansfield Park and marries Edmund.",
    "Mrs. Norris": "She is the aunt at Mansfield, who is fond of saving money and of scolding Fanny.",
    "Henry Crawford": "He is a lively young man of fortune, who makes love to every lady and is refused by Fanny.",
    "Catherine Morland": "She is a girl of seventeen, who has read too many novels and looks for horrors in an abbey.",
    "Henry Tilney": "He is a witty young clergyman, who dances with Catherine at Bath and marries her.",
    "Anne Elliot": "She is the second daughter of Sir Walter, who gave up her lover and loves him still.",
    "Sir Walter Elliot": "He is a vain baronet, who reads only the Baronetage and admires himself.",
    "Captain Wentworth": "He is an officer of the navy, who comes back rich and marries Anne.",
}
WHERE = {
    "Mr. Darcy": "He lives at Pemberley, in Derbyshire.",
    "Mr. Bingley": "He lives at Netherfield, three miles from Longbourn.",
    "Mr. Collins": "He lives in the parsonage at Hunsford, in Kent.",
    "Lady Catherine": "She lives at Rosings, in Kent.",
    "Mrs. Bennet": "She lives at Longbourn, in Hertfordshire.",
    "Mrs. Gardiner": "She lives in Gracechurch Street, in London.",
    "Emma Woodhouse": "She lives at Hartfield, close to Highbury.",
    "Mr. Knightley": "He lives at Donwell Abbey, a mile from Highbury.",
    "Fanny Price": "She lives at Mansfield Park, with her uncle and aunt.",
    "Sir Walter Elliot": "He lives at Kellynch Hall, and afterwards at Bath.",
    "Colonel Brandon": "He lives at Delaford, in Dorsetshire.",
    "Henry Tilney": "He lives in the parsonage at Woodston.",
}
MARRIES = {
    "Elizabeth Bennet": "She marries Mr. Darcy.",
    "Jane Bennet": "She marries Mr. Bingley.",
    "Lydia Bennet": "She marries Mr. Wickham.",
    "Charlotte Lucas": "She marries Mr. Collins.",
    "Emma Woodhouse": "She marries Mr. Knightley.",
    "Harriet Smith": "She marries Robert Martin.",
    "Elinor Dashwood": "She marries Edward Ferrars.",
    "Marianne Dashwood": "She marries Colonel Brandon.",
    "Fanny Price": "She marries her cousin Edmund.",
    "Catherine Morland": "She marries Henry Tilney.",
    "Anne Elliot": "She marries Captain Wentworth.",
    "Mr. Darcy": "He marries Elizabeth.",
    "Mr. Bingley": "He marries Jane.",
    "Mr. Wickham": "He marries Lydia.",
    "Mr. Collins": "He marries Charlotte.",
    "Mr. Knightley": "He marries Emma.",
}
PLACES = {
    "Pemberley": "It is the great house of Mr. Darcy, in Derbyshire.",
    "Netherfield": "It is a large house in Hertfordshire, which Mr. Bingley takes.",
    "Longbourn": "It is the village where the Bennets live.",
    "Rosings": "It is the house of Lady Catherine, in Kent.",
    "Meryton": "It is a small town, where the officers are, a mile from Longbourn.",
    "Brighton": "It is a town by the sea, where Lydia goes with the officers.",
    "Gretna Green": "It is a place in Scotland, where lovers go to be married in haste.",
    "Hartfield": "It is the house of Emma and her father.",
    "Highbury": "It is a large village, sixteen miles from London, where everybody knows everybody.",
    "Mansfield Park": "It is the great house of Sir Thomas Bertram, in Northamptonshire.",
    "Northanger Abbey": "It is the old house of General Tilney, with very few horrors in it.",
    "Kellynch Hall": "It is the house of Sir Walter Elliot, in Somersetshire, and it is let to an admiral.",
    "Lyme": "It is a town by the sea, where Louisa falls from the steps.",
    "Bath": "It is a town where people drink the waters, dance, and look for husbands.",
}
ASKED = (
    (WHO, ("Who is {}?", "Tell me about {}.", "What do you know of {}?", "Describe {}.", "Pray, who is {}?",
           "I have not met {}. Who is that?", "Tell me who {} is.", "Do you know {}?")),
    (WHERE, ("Where does {} live?", "Where is the home of {}?", "Tell me where {} lives.", "Where shall I find {}?",
             "In what place does {} live?")),
    (MARRIES, ("Whom does {} marry?", "Who is married to {}?", "Tell me whom {} marries.", "To whom is {} married?",
               "Is {} married?")),
    (PLACES, ("What is {}?", "What sort of place is {}?", "Tell me about {}.", "Where is {}?", "Describe {}.",
              "Tell me what {} is.")),
)  # fmt: skip
NAMES = ("Elizabeth", "Mr. Darcy", "Mr. Collins", "Lydia", "Lady Catherine", "Emma", "Mr. Knightley", "Harriet",
         "Elinor", "Marianne", "Willoughby", "Fanny", "Edmund", "Catherine", "Anne", "Captain Wentworth")  # fmt: skip
REQUESTS = ("Write a sentence about {}.", "Write one line of a novel about {}.")

Sample = dict[str, str]


def questions() -> tuple[list[Sample], list[Sample]]:
    """Questions with answers to train and to validate on; of each fact another phrasing is held out."""
    train, val = [], []
    for answers, phrasings in ASKED:
        for number, (subject, answer) in enumerate(answers.items()):
            for i, phrasing in enumerate(phrasings):
                held_out = i == 1 + number % (len(phrasings) - 1)
                (val if held_out else train).append({"instruction": phrasing.format(subject), "output": answer})
    return train, val


def sentences(text: str) -> list[str]:
    """Whole sentences of the narrator, 30 to 120 characters long."""
    found = []
    for paragraph in text.split("\n"):
        if '"' in paragraph:
            continue
        for sentence in re.split(r"(?<=[.!?])(?<!Mr\.)(?<!Mrs\.)(?<!St\.) (?=[A-Z])", paragraph):
            if 30 <= len(sentence) <= 120 and sentence[0].isupper() and sentence[-1] in ".!?":
                found.append(sentence)
    return found


def requests(found: list[str], chance: random.Random) -> tuple[list[Sample], list[Sample]]:
    """Requests for a sentence about somebody, answered with one that names them early; no sentence is used twice."""
    train, val = [], []
    used: set[str] = set()
    for name in NAMES:
        named = re.compile(rf"(?<!Lady ){re.escape(name)}\b")
        about = [s for s in found if (match := named.search(s)) and match.start() <= 40 and s not in used]
        chosen = chance.sample(about, min(len(about), SENTENCES_PER_NAME + VALIDATION_SENTENCES_PER_NAME))
        used.update(chosen)
        for i, sentence in enumerate(chosen):
            sample = {"instruction": REQUESTS[i % len(REQUESTS)].format(name), "output": sentence}
            (val if i < VALIDATION_SENTENCES_PER_NAME else train).append(sample)
    return train, val


def follow_ups(asked: list[Sample], earlier: list[Sample], count: int, chance: random.Random) -> list[Sample]:
    """Questions after other questions and their answers, as a chat writes them in the prompt style `default`."""
    found = []
    for sample in chance.sample(asked, count):
        turns = chance.sample(earlier, chance.randint(1, MOST_EARLIER_TURNS))
        history = "".join(f"{turn['instruction']}{turn['output']}\n" for turn in turns)
        found.append({"instruction": history + sample["instruction"], "output": sample["output"]})
    return found


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    chance = random.Random(SEED)
    text = "\n".join(file.read_text(encoding="utf-8") for file in sorted(source.glob("*.txt")))
    target.mkdir(parents=True, exist_ok=True)
    sets = dict(zip(("train", "val"), zip(questions(), requests(sentences(text), chance), strict=True), strict=True))
    earlier, _ = sets["train"]
    for name, (asked, requested) in sets.items():
        samples = [*asked, *requested, *follow_ups(asked, earlier, FOLLOW_UPS[name], chance)]
        chance.shuffle(samples)
        file = target / f"{name}.jsonl"
        file.write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")
        print(f"{file}: {len(samples)} samples, {len(asked)} of them questions")


if __name__ == "__main__":
    main()
