"""Writes the training text: short stories put together from a grammar of our own.

Owns every word the shipped model has ever read. The text is generated, so its licence is this
repository's and a seed reproduces it to the byte:

    python3 corpus.py --stories 60000 --seed 1 > corpus.txt
"""
import argparse
import random
import sys

GIRLS = "Anna Lily Mia Rosa Clara Nora Ella Ivy Maya Zoe Sara Ruth June Tessa Greta Hanna".split()
BOYS = "Tom Ben Max Leo Sam Jack Finn Oscar Hugo Adam Noah Felix Paul Theo Emil Karl".split()
ANIMALS = "dog cat rabbit duck fox mouse bear owl frog squirrel pony lamb hedgehog goat".split()
PETNAMES = "Pip Biscuit Pepper Button Clover Nutmeg Sunny Pebble Willow Mochi Ginger Acorn".split()
FAMILY = [("mother", "she"), ("father", "he"), ("grandmother", "she"), ("grandfather", "he"), ("aunt", "she"), ("uncle", "he")]
PLACES = ["in a small village by the sea", "near a quiet forest", "on a farm at the edge of the hills",
          "in a little house by the river", "in a busy town with a tall clock tower", "on a green island",
          "in a valley full of apple trees", "at the end of a long and narrow street"]
GO = ["the forest", "the river", "the park", "the beach", "the old mill", "the market", "the meadow", "the hill", "the pond", "the garden"]
TOYS = ["red ball", "blue kite", "wooden boat", "little drum", "silver bell", "yellow hat", "toy train", "paper lantern",
        "green scarf", "picture book", "tin box", "woollen bear"]
FOODS = ["apple pie", "warm bread", "carrot soup", "honey cakes", "pancakes", "plum jam", "cheese sandwiches", "blueberry muffins"]
WEATHER = ["The sun was shining and the sky was blue.", "It was a cold and windy morning.", "Soft rain was falling on the roof.",
           "Snow covered the fields like a white blanket.", "The air smelled of flowers and fresh grass.",
           "A warm breeze moved the leaves.", "Grey clouds were hanging low over the hills."]
TRAITS = ["kind", "brave", "curious", "clever", "shy", "cheerful", "patient", "careful", "funny", "quiet"]
GLAD = ["happy", "proud", "glad", "full of joy", "very pleased", "thankful"]
SAD = ["sad", "worried", "upset", "lonely", "disappointed", "afraid"]
TIMES = ["One day", "One morning", "One afternoon", "On a Sunday", "Early in the morning", "After breakfast", "On the first day of spring", "Late in the summer"]
MORALS = ["It is good to help each other.", "A friend is better than any toy.", "Those who share are never poor.", "It is never too late to say sorry.",
          "Small steps can take you a long way.", "If you are patient, good things will come.", "Being brave does not mean that you are never afraid.",
          "Listening is sometimes the best way to help.", "It is fine to make mistakes, because you can learn from them."]
SKILLS = [("swim", "in the lake", "kicked {p} legs and held {p} breath"), ("ride a bicycle", "on the long road", "held the handlebars and looked straight ahead"),
          ("bake bread", "in the kitchen", "mixed the flour and the water with both hands"), ("play the flute", "under the big tree", "put {p} fingers on the holes and blew softly"),
          ("paint", "by the window", "chose the colours with great care"), ("fly a kite", "on the hill", "ran against the wind and let out the string"),
          ("read", "in the library", "followed the words with one finger"), ("plant seeds", "in the garden", "made a row of tiny holes in the earth"),
          ("row a boat", "on the river", "pulled the oars slowly through the water")]
FLOWERS = ["sunflower", "pumpkin", "rose bush", "cherry tree", "tomato plant", "bean", "strawberry plant"]


class Person:
    def __init__(self, r):
        self.girl = r.random() < 0.5
        self.name = r.choice(GIRLS if self.girl else BOYS)
        self.kind = "girl" if self.girl else "boy"
        self.he, self.him, self.his = ("she", "her", "her") if self.girl else ("he", "him", "his")
        self.He, self.His = self.he.capitalize(), self.his.capitalize()


def a(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


def say(r, who, text, verb=None):
    verb = verb or r.choice(["said", "said", "whispered", "answered", "called"])
    if text[-1] in "?!":
        return f'"{text}" {"asked" if text[-1] == "?" else verb} {who}.'
    return r.choice([f'"{text[:-1]}," {verb} {who}.', f'{who[0].upper() + who[1:]} {verb}, "{text}"'])


def opening(r, p):
    trait = r.choice(TRAITS)
    return r.choice([
        f"Once upon a time, there was {a(trait)} {p.kind} named {p.name}. {p.He} lived {r.choice(PLACES)}.",
        f"{p.name} was {a(trait)} {p.kind} who lived {r.choice(PLACES)}.",
        f"There once lived {a(trait)} little {p.kind} {r.choice(PLACES)}. {p.His} name was {p.name}."])


def friend(r, p):
    while True:
        q = Person(r)
        if q.name != p.name:
            return q


def lost(r):
    p, toy, place = Person(r), r.choice(TOYS), r.choice(GO)
    q, animal = friend(r, p), r.choice(ANIMALS)
    where = r.choice(["under a bush", "behind a big stone", "between the roots of an old tree", "on top of a wall", "next to the bridge", "in the tall grass"])
    t = [opening(r, p), f"{p.He} had {a(toy)} and took it everywhere.", f"{r.choice(TIMES)}, {p.name} went to {place}. {r.choice(WEATHER)}",
         f"When {p.he} came home, the {toy} was gone. {p.name} was very {r.choice(SAD)}.",
         say(r, p.name, r.choice([f"Where is my {toy}?", f"I cannot find my {toy}.", f"I have lost my {toy}!"]))]
    if r.random() < 0.5:
        t += [f"{p.His} friend {q.name} heard {p.him} and came to help.", say(r, q.name, r.choice(["Let us look for it together.", "Do not worry, we will find it.", "Where did you see it last?"])),
              f"They walked back to {place} and looked everywhere. At last, {q.name} saw something {where}.", f"It was the {toy}!",
              f'{say(r, p.name, "Thank you, you are a good friend.")} The two friends played until the sun went down.']
    else:
        t += [f"Then a little {animal} came along the path. It looked at {p.name} and ran ahead.", f"{p.name} followed the {animal} all the way to {place}. There, {where}, was the {toy}.",
              say(r, p.name, "Thank you, little one!"), f"{p.He} gave the {animal} something to eat, and from that day on they were friends."]
    return t


def learn(r):
    p, (skill, where, how) = Person(r), r.choice(SKILLS)
    rel, he = r.choice(FAMILY)
    t = [opening(r, p), f"More than anything, {p.name} wanted to learn how to {skill}.", f"{r.choice(TIMES)}, {p.his} {rel} took {p.him} by the hand.",
         say(r, f"{p.his} {rel}", r.choice(["Today I will show you how.", f"Come with me, and we will try it together {where}.", "Watch me first, and then it is your turn."])),
         f"{p.name} {how.format(p=p.his)}. At first, it did not go well.", r.choice([f"{p.He} was {r.choice(SAD)} and wanted to stop.", f"{p.He} tried again and again, but it was hard."]),
         say(r, f"{p.his} {rel}", r.choice(["Nobody can do it on the first day.", "Take your time and try once more.", "You are doing better than you think."])),
         f"So {p.name} practised every day {where}. {r.choice(['After a week', 'After many days', 'In the end', 'Slowly but surely'])}, {p.he} could {skill} all alone.",
         f"{p.His} {rel} smiled, and {p.name} was {r.choice(GLAD)}."]
    return t


def share(r):
    p, food = Person(r), r.choice(FOODS)
    q, animal = friend(r, p), r.choice(ANIMALS)
    t = [opening(r, p), f"{r.choice(TIMES)}, {p.name} helped in the kitchen and made {food}. The whole house smelled wonderful.",
         f"{p.He} put the {food} in a basket and walked to {r.choice(GO)}. {r.choice(WEATHER)}",
         f"On the way, {p.he} met {r.choice([f'a hungry {animal}', f'{q.name}, who had nothing to eat', f'{q.name} with a small {animal}'])}.",
         r.choice([f"{p.name} thought about it for a moment. There was not very much in the basket.", f"{p.name} looked at the basket and then smiled."]),
         say(r, p.name, r.choice(["You can have half of it.", "There is enough for both of us.", "Please sit down and eat with me."])),
         f"They sat in the grass and ate together. {r.choice(['Nothing had ever tasted so good.', 'They talked and laughed for a long time.', 'Afterwards, they were not hungry any more.'])}",
         f"When {p.name} walked home, the basket was empty, but {p.he} was {r.choice(GLAD)}."]
    return t


def storm(r):
    p, animal, name = Person(r), r.choice(ANIMALS), r.choice(PETNAMES)
    rel, he = r.choice(FAMILY)
    t = [opening(r, p), f"{p.He} had {a(animal)} called {name}. They did everything together.",
         f"One night, there was a big storm. The wind was loud and the rain beat against the windows.", f"{name} was {r.choice(['afraid', 'shaking with fear', 'hiding under the bed'])}.",
         say(r, p.name, r.choice([f"Do not be afraid, {name}. I am here.", f"Come to me, {name}. The storm cannot hurt us.", f"It is only the wind, {name}."])),
         f"{p.name} wrapped {name} in a warm blanket and sang a quiet song.",
         r.choice([f"Then {p.his} {rel} came in with a candle and told them a story about the stars.", f"{p.His} {rel} brought warm milk and sat down beside them.", "After a while, the thunder moved away over the hills."]),
         f"In the morning, {r.choice(['the sky was clear', 'the sun came out', 'everything was calm again'])}. {name} jumped out of bed and ran to the door.",
         f"{p.name} laughed and opened it, and they went out to {r.choice(['jump over the puddles', 'look at the wet garden', 'see what the storm had left behind'])}."]
    return t


def grow(r):
    p, plant = Person(r), r.choice(FLOWERS)
    rel, he = r.choice(FAMILY)
    t = [opening(r, p), f"{r.choice(TIMES)}, {p.his} {rel} gave {p.him} a tiny seed.", say(r, p.name, "What will it be?"),
         say(r, f"{p.his} {rel}", r.choice(["You must wait and see.", "Give it water and light, and it will show you.", "Plant it, and be patient."])),
         f"{p.name} planted the seed in the garden and gave it water every day. {r.choice(['But for a long time, nothing happened.', 'One week went by, and then another.', 'Every evening, there was only brown earth.'])}",
         f"{p.name} was {r.choice(SAD)}, but {p.he} did not give up.", f"Then, {r.choice(['one bright morning', 'after a night of rain', 'at the end of the month'])}, a green leaf came out of the ground.",
         f"It grew and grew, and by the end of the summer it was a beautiful {plant}.", f"{p.name} called the whole family to look at it. Everyone was {r.choice(GLAD)}."]
    return t


def pet(r):
    p, animal, name = Person(r), r.choice(ANIMALS), r.choice(PETNAMES)
    place = r.choice(GO)
    rel, he = r.choice(FAMILY)
    t = [opening(r, p), f"{r.choice(TIMES)}, {p.name} was walking near {place} when {p.he} heard a small sound.", f"It was a young {animal} with a hurt leg.",
         say(r, p.name, r.choice(["Poor little thing!", "Do not worry, I will help you.", "Are you all alone?"])),
         f"{p.He} carried the {animal} home very carefully. {p.His} {rel} cleaned the leg and put a bandage around it.",
         say(r, p.name, f"Can {r.choice(['it', 'the ' + animal])} stay with us?"), say(r, f"{p.his} {rel}", r.choice(["Yes, until it is well again.", "Yes, but you must take care of it.", "Of course, if you feed it every day."])),
         f"{p.name} named the {animal} {name}. Day after day, {name} became stronger.",
         r.choice([f"When the leg was healed, {p.name} opened the door. {name} looked outside, turned around, and stayed.", f"In spring, {name} went back to {place}, but came to visit {p.name} every week.", f"Soon {name} could run again, and {p.name} ran after it, laughing."])]
    return t


def build(r):
    p = Person(r)
    q = friend(r, p)
    thing, parts = r.choice([("tree house", "old boards and a long rope"), ("raft", "six logs and some string"), ("snowman", "three big balls of snow and a carrot"),
                             ("sand castle", "wet sand and white shells"), ("bird house", "thin wood and small nails"), ("bridge", "flat stones and a strong board")])
    t = [opening(r, p), f"{p.His} best friend was called {q.name}. {r.choice(TIMES)}, they decided to build {a(thing)}.",
         f"They collected {parts} and carried everything to {r.choice(GO)}.", say(r, q.name, r.choice(["I will hold it, and you can fix it.", "We should start with the biggest part.", "Where does this piece go?"])),
         f"They worked hard all day. But when they were nearly done, {r.choice(['one side fell down', 'the wind blew a part of it away', 'it broke in the middle'])}.",
         f"{q.name} was {r.choice(SAD)}. {say(r, p.name, r.choice(['We can make it even better.', 'Let us try another way.', 'Now we know what went wrong.']))}",
         f"They started again, and this time {r.choice(['they were more careful', 'they made it stronger', 'they helped each other with every piece'])}.",
         f"When the {thing} was finished, {p.name} and {q.name} {r.choice(['sat next to each other and looked at it', 'invited all the other children', 'danced around it'])}. They were {r.choice(GLAD)}."]
    return t


def talk(r):
    p, animal = Person(r), r.choice(ANIMALS)
    other = r.choice([x for x in ANIMALS if x != animal])
    n, m = r.sample(PETNAMES, 2)
    t = [f"In {r.choice(['a deep forest', 'a wide meadow', 'an old garden', 'a quiet valley'])}, there lived {a(animal)} named {n}. {n} was {r.choice(TRAITS)}, but had no friends.",
         f"{r.choice(TIMES)}, {n} met {a(other)} named {m}. {r.choice(WEATHER)}", say(r, n, r.choice(["Hello, who are you?", "Would you like to play with me?", "Why are you sitting here all alone?"])),
         say(r, m, r.choice(["My name is " + m + ", and I am looking for a new home.", "I am looking for the way to the river.", "I am waiting for the stars to come out."])),
         say(r, n, r.choice(["Then come with me.", "I know a good place.", "We can go there together."])), f"So the {animal} and the {other} walked side by side. They {r.choice(['crossed a stream', 'climbed over a hill', 'passed a field of yellow flowers'])} and {r.choice(['told each other stories', 'sang a song', 'shared some berries'])}.",
         f"In the evening, they came to {r.choice(GO)}. {m} was {r.choice(GLAD)}.", f'{say(r, m, "Will you stay my friend?")} {say(r, n, "Yes, always.")}']
    return t


STORIES = [lost, learn, share, storm, grow, pet, build, talk]


def story(r):
    sentences = r.choice(STORIES)(r)
    if r.random() < 0.4:
        sentences.append(r.choice(MORALS))
    cut = r.randint(3, 5)
    return " ".join(sentences[:cut]) + "\n" + " ".join(sentences[cut:])


def stories(count, seed):
    r = random.Random(seed)
    for _ in range(count):
        yield story(r)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--stories", type=int, default=60000)
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    for text in stories(chosen.stories, chosen.seed):
        sys.stdout.write(text + "\n\n")
