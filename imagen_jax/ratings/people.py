"""Captions that speak of people, by a list of words of this project's own; the paper's list is not published."""

import re

_WORDS = """
adult adults athlete athletes audience babies baby ballerina bartender batter batters bicyclist bicyclists biker
bikers bishop boxer boy boys boyfriend bride brides brother brothers businessman businessmen businesswoman catcher
catchers chef chefs child children clown clowns coach coaches competitor competitors cook cooks couple couples
cowboy cowboys cowgirl crowd crowds customer customers cyclist cyclists dad dancer dancers daughter daughters diner
diners doctor doctors driver drivers elderly everyone everybody families family farmer farmers father fathers female
females firefighter firefighters fisherman fishermen folks friend friends gentleman gentlemen girl girlfriend girls
goalie golfer golfers grandfather grandma grandmother grandpa group guard guards guy guys he her hers herself hiker
hikers him himself his human humans husband infant infants kid kids lad ladies lady lifeguard male males man men mom
mother mothers motorcyclist motorcyclists musician musicians nurse nurses officer officers old-timer parent parents
passenger passengers passerby patron patrons pedestrian pedestrians people performer performers person persons
photographer photographers pilot pilots pitcher pitchers player players police policeman policemen policewoman
policewomen priest protesters queen rider riders runner runners sailor sailors salesman selfie she shopper shoppers
sister sisters skateboarder skateboarders skater skaters skier skiers snowboarder snowboarders soldier soldiers
somebody someone son sons spectator spectators student students surfer surfers swimmer swimmers teacher teachers
team teams teen teenager teenagers teens toddler toddlers tourist tourists traveler travelers umpire umpires vendor
vendors waiter waiters waitress wife woman women worker workers youth youths
"""
PEOPLE_WORDS = frozenset(_WORDS.split())
PEOPLE, NO_PEOPLE = "people", "no people"


def people_category(caption: str) -> str:
    """Category of a caption: `NO_PEOPLE` where none of its words is in `PEOPLE_WORDS`."""
    words = re.findall(r"[a-z]+(?:-[a-z]+)*", caption.lower())
    parts = {part for word in words for part in (word, *word.split("-"))}
    return PEOPLE if parts & PEOPLE_WORDS else NO_PEOPLE
