"""The words and plots of the short stories, which `stories` tells."""

from __future__ import annotations


def _split(lists: dict[str, str], separator: str | None = None) -> dict[str, list[str]]:
    return {key: words.split(separator) for key, words in lists.items()}


# The words of the stories. No name ends in s ("Ines's"), none is another word, and a or an goes by the first letter.

PRONOUNS = {
    "he": {"he": "he", "him": "him", "his": "his", "himself": "himself"},
    "she": {"he": "she", "him": "her", "his": "her", "himself": "herself"},
    "it": {"he": "it", "him": "it", "his": "its", "himself": "itself"},
    "they": {"he": "they", "him": "them", "his": "their", "himself": "themselves"},
}
KINDS = {"he": "pronoun", "him": "pronoun", "his": "possessive", "himself": "reflexive"}
PEOPLE = _split(
    {
        "he": "Aaron Ahmed Anton Arthur Benjamin Carlo Daniel David Diego Edgar Emil Ethan Evan Felix Gustav Henry "
        "Hugo Ibrahim Ivan Jakob José Juan Karl Kenji Leon Liam Marco Martin Mateo Noah Oliver Omar Oscar Pedro "
        "Peter Rafael Samir Simon Stefan Søren Theo Tom Viktor Walter",
        "she": "Ada Aisha Alice Amina Anna Bianca Carla Clara Diana Elena Ella Emma Fatima Flora Greta Hana Helen Ida "
        "Ingrid Isabel Jana Julia Karin Laura Leila Lena Lucy Maria Marta Mira Nadia Nina Nora Olga Paula Priya Rosa "
        "Sara Sofia Tara Ursula Vera Yuki Zoë",
        "they": "Alex Ariel Avery Blake Cameron Casey Charlie Dakota Emery Finley Jamie Jordan Kai Morgan Quinn Remy "
        "Robin Rowan Sam Taylor",
    }
)
ANIMAL_NAMES = _split(
    {
        "he": "Balu Bandit Barney Bruno Buddy Caesar Hector Leo Max Milo Rex Rocky Rudi Toby Ziggy",
        "she": "Bella Cleo Coco Daisy Dora Fifi Lola Lulu Luna Minka Molly Nala Riley Roxy Trixi Zelda",
        "it": "Biscuit Comet Fuzzy Mango Noodle Nugget Pebble Pickle Pixel Pumpkin Turbo Waffle",
    }
)
KIN = _split(
    {
        "he": "brother cousin father friend grandfather neighbour uncle",
        "she": "aunt cousin friend grandmother mother neighbour sister",
        "they": "cousin friend neighbour",
    }
)
NOUNS = _split(
    {
        "trade": "actor architect baker carpenter doctor engineer farmer gardener nurse painter pilot sailor student "
        "tailor",
        "animal": "alpaca cat dog donkey goat goose hamster hedgehog horse kitten parrot pony puppy rabbit sheep "
        "squirrel",
        "thing": "accordion album bag ball basket bell blanket book bottle bowl box camera candle clock coat coin cup "
        "doll drum envelope flute hammer hat instrument jacket key kite knife lamp lantern letter map mask mirror mug "
        "necklace notebook painting pen pillow postcard puzzle radio ring rope scarf shell spoon suitcase telescope "
        "toy trumpet umbrella vase violin watch whistle",
        "things": "binoculars boots earrings glasses gloves headphones marbles mittens scissors shoes skates slippers "
        "socks",
        "place": "attic bakery barn basement castle cave cellar church courtyard forest garage garden greenhouse hall "
        "harbour hotel kitchen library market meadow museum orchard park pub school shed stable station theatre valley "
        "village workshop",
    }
)
LOOKS = _split(
    {
        "animal": "black brown clever elderly friendly grey little old quiet small stray thin white wild young",
        "thing": "ancient beautiful big black blue brown cheap elegant enormous expensive green grey huge little "
        "lovely new odd old ordinary plain pretty purple red shiny small strange ugly unusual white yellow",
    }
)
PHRASES = _split(
    {
        "time": "one day,one morning,one evening,one afternoon,early one morning,late one night,on Monday,on Tuesday,"
        "on Wednesday,on Thursday,on Friday,on Saturday,on Sunday,after lunch,before breakfast,at noon,at midnight,"
        "at Christmas,in spring,in summer,in autumn,in winter",
        "later": "soon,a little later,the next day,the next morning,an hour later,two days later,a week later,"
        "that evening,that night,in the evening,after a while",
        "mood": "tired,nervous,hungry,thirsty,excited,curious,bored,worried,confused,sleepy",
        "quietly": "quietly,quickly,slowly,calmly,carefully,patiently",
    },
    ",",
)

# Plots: who takes part ("D/A" belongs to A, B may be a relative of A), then stages with an empty line between them,
# each told by one of its lines ("-": not at all). {A} {A.him} {A.his} {A.himself} are mentions, <verbs> agree with the
# last mention of the first form and follow the story's tense. Nothing else in a line may be what a pronoun stands for.
PLOTS = """\
A B O/A
{A} <lose> {O.him} {time}.
{time}, {A} <be> looking for {O.him}.
{A} <need> {O.him}, but {O} <be> gone.
{A} <be> sad, because {A} <cannot> find {O.him}.
{time}, {A} <forget> {O.him} in {L}.

{A} <look> everywhere, but {A} <find> nothing.
{A} <search> {L} {quietly}, but in vain.
{A} <be> angry with {A.himself}.
{A} <ask> {A.himself} where {O} <be>.
{A} <do> {A.his} best to stay calm.
-

{A} <call> {B.him}, and {B} <come> at once.
{later}, {A} <ask> {B.him} for help.
{B} <hear> about {O.him} and <decide> to help {A.him}.
{A} <meet> {B.him} in {L} and <tell> {B.him} everything.
{later}, {B} <offer> to help {A.him}.

{B} <find> {O.him} in {M}.
{B} <remember> seeing {O.him} in {M}, and {B} <be> right.
{B} <look> around and <see> {O.him} at once.
{later}, {B} <find> {O.him} and <bring> {O.him} back.
{B} <know> where {O} <be>, because {B} never <forget> anything.

{A} <thank> {B.him} and <promise> to look after {O.him}.
{A} <be> so happy that {A} <hug> {B.him}.
{A} <laugh> at {A.himself} and <take> {O.him} home.
{later}, {A} <invite> {B.him} to dinner.
{A} <be> glad to have {O.him} back.

===
A B O
{A} <buy> {O.him} for {B.him}.
{time}, {A} <make> {O.him} for {B.him}.
{A} <want> to surprise {B.him} with {O.him}.
{time}, {A} <see> {O.him} in {L} and <think> of {B.him}.
{A} <choose> {O.him} as a present for {B.him}.

{A} <wrap> {O.him} {quietly} and <hide> {O.him} in {M}.
{A} <clean> {O.him} until {O} <look> perfect.
{A} <be> not sure that {B} <like> {O.him}.
{A} <keep> {O.him} in {M} until Sunday.
{A} <take> {A.his} time and <wrap> {O.him} {quietly}.
-

{later}, {A} <give> {O.him} to {B.him}.
{later}, {A} <visit> {B.him} and <bring> {O.him} along.
{later}, {A} <bring> {O.him} to {L}, where {B} <be> waiting.
{B} <guess> everything, but {B} <say> nothing.
{A} <tell> {B.him} to wait and see.

{B} <be> so happy that {B} <hug> {A.him}.
{B} <cannot> believe that {O} <be> a present.
{B} <love> {O.him} and <show> {O.him} to everyone.
{B} <thank> {A.him} and <put> {O.him} away {quietly}.
{B} <look> at {O.him} and <smile>.

{A} <be> proud of {A.himself}.
From then on, {B} never <leave> home without {O.him}.
{A} <be> happy too, because {A} <like> to make others happy.
{later}, {B} <take> {O.him} to {L}.
-

===
A B D/A
{D} <be> so hyper that {D} never <stop> moving.
{A} <live> with {D.him}, and {D} <be> often bored.
{A} <love> {D.him} and never <leave> {D.him} alone.
{D} <be> clever, and {D} <like> to explore.
{A} often <walk> to {L} with {D.him}.

{time}, {D} <run> away and <hide> in {L}.
{time}, {D} <escape> while {A} <be> asleep.
{time}, {A} <wake> up, and {D} <be> gone.
{D} <see> {O.him} in {L} and <run> off.
{later}, {D} <follow> {B.him} to {L}.

{A} <run> after {D.him} as fast as {A} <can>.
{A} <call> {D.him} again and again.
{A} <worry> about {D.him} and <look> everywhere.
{A} <ask> {B.him} to help {A.him}.
{D} <find> {O.him} in {M} and <play> with {O.him} for hours.

{B} <see> {D.him} in {L} and <call> {A.him}.
{B} <wake> up and <hear> {D.him} in {M}.
{B} <catch> {D.him} and <hold> {D.him} {quietly}.
{D} <be> afraid of {B.him} at first, but {B} <be> very kind.
{later}, {D} <get> hungry and <come> back.

{A} <be> so relieved that {A} <hug> {D.him}.
{A} <thank> {B.him} and <carry> {D.him} home.
{D} <be> happy to see {A.him} again.
{later}, {D} <lie> down and <sleep> until noon.
{B} <say> goodbye to {D.him} and <smile> at {A.him}.

===
A B D O/A
{A} <leave> {O.him} in {L} {time}.
{time}, {A} <clean> {O.him} and <put> {O.him} down for a moment.
{time}, {A} <go> to {L} with {O.him}.
{A} <have> {O.him} with {A.him}, as always.

{later}, {D} <come> along and <steal> {O.him}.
{D} <grab> {O.him} and <run> away.
{D} <look> at {O.him} {quietly} and <carry> {O.him} off.
{D} <think> that {O} <be> food.
{later}, {D} <sit> down on {O.him} and <fall> asleep.

{A} <shout> at {D.him}, but {D} <do> not listen.
{A} <try> to catch {D.him}, but {D} <be> too fast.
{B} <see> {D.him} and <laugh> out loud.
{D} <hide> {O.him} in {M}.
{A} <ask> {B.him} to talk to {D.him}.

{B} <know> what to do and <sing> to {D.him}.
{B} <call> {D.him}, and {D} <drop> {O.him}.
{A} <wait> {quietly} until {D} <get> bored of {O.him}.
{later}, {A} <find> {O.him} in {M}.
{B} <speak> to {D.him} {quietly} and <take> {O.him} back.

{A} <be> happy again, but {D} <be> not.
{A} <forgive> {D.him}, because {D} <mean> no harm.
{A} <thank> {B.him} and <hide> {O.him} from {D.him}.
{D} <look> at {A.him} as if {D} <be> sorry.
From then on, {A} never <let> {D.him} near {O.him}.

===
A B O Q
{A} <find> {O.him} and {Q.him} in {L}.
{time}, {A} <buy> {O.him} and {Q.him}.
{A} <have> two treasures, {O.him} and {Q.him}.
{time}, {B} <show> {A.him} {O.him} and {Q.him}.

{A} <like> {O.him}, but {B} <prefer> {Q.him}.
{Q} <be> nicer than {O.him}.
{A} <put> {O.him} next to {Q.him} and <look> at both.
{A} <cannot> decide between {O.him} and {Q.him}.
-

{A} <keep> {O.him} and <give> {Q.him} to {B.him}.
{A} <sell> {O.him} to {B.him} and <keep> {Q.him}.
{later}, {B} <ask> {A.him} for {O.him}.
{A} <hide> {O.him} in {M} and <hope> to forget {Q.him}.
{B} <take> {Q.him}, because {B} <be> in love with {Q.him}.

{later}, {A} <miss> {Q.him} and <want> to have {Q.him} back.
{later}, {B} <drop> {Q.him} on {O.him}.
{B} <look> at {O.him} and <say> nothing.
{later}, {B} <lose> {O.him}, but {A} <have> {Q.him}.
{A} <lend> {B.him} {O.him} for a week.

{A} <know> that {Q} <be> safe.
{B} <thank> {A.him} and <promise> to be careful with {Q.him}.
{A} <be> not angry with {B.him}.
{A} <laugh> and <take> both home.
{B} <be> happy with {Q.him}.

===
A B D
{time}, {A} <see> {D.him} in {L}.
{A} <meet> {D.him} on the way to {L}.
{time}, {D} <follow> {A.him} home.
{time}, {A} <hear> {D.him} in {L}.

{D} <be> cold, and {D} <look> at {A.him} sadly.
{D} <be> all alone, and {A} <be> sorry for {D.him}.
{D} <be> hurt and <cannot> walk.
{A} <sit> down and <wait> {quietly} until {D} <come> closer.
{D} <be> hungry, so {A} <feed> {D.him}.

{A} <call> {B.him}, because {B} <be> very patient.
{A} <take> {D.him} to {B.him}.
{A} <ask> {B.him} what to do with {D.him}.
{later}, {B} <come> by and <look> at {D.him}.
{A} <carry> {D.him} to {M}.

{B} <find> {O.him} for {D.him} to play with.
{D} <trust> {B.him} and <let> {B.him} come near.
{B} <be> afraid of {D.him}, but {B} <stay> calm.
{later}, {D} <feel> better and <get> up.
{D} <sleep> in {M} and <wake> up at noon.

From then on, {D} <live> with {A.him}.
{A} <decide> to keep {D.him}.
{D} <make> {D.his} way back to {L}.
{later}, {A} <say> goodbye to {D.him}.
{D} never <leave> {A.him} again.

===
A B O/A
{A} <lend> {O.him} to {B.him}.
{B} <want> to borrow {O.him} from {A.him}.
{time}, {B} <take> {O.him} without asking {A.him}.
{time}, {B} <ask> {A.him} for {O.him}.

{B} <use> {O.him} all day long.
{B} <take> {O.him} to {L} and <forget> {O.him}.
{B} <promise> to be careful, but {B} <break> {O.him}.
{later}, {B} <leave> {O.him} outside.
{B} <say> that {B} <need> {O.him} for a week.

{A} <notice> that {O} <be> not the same any more.
{A} <wait> for {B.him} in {M}.
{A} <be> angry, but {A} <try> to stay calm.
{A} <ask> {B.him} about {O.him}.
{later}, {A} <want> {O.him} back.

{B} <apologise> and <explain> everything to {A.him}.
{B} <be> ashamed of {B.himself}.
{B} <fix> {O.him} in {M}.
{B} <do> {B.his} best to make up for everything.
{B} <give> {A.him} {Q.him} instead.

{A} <forgive> {B.him} and <smile>.
{A} <take> {O.him} home and <say> no more.
{A} <change> {A.his} mind and <let> {B.him} keep {O.him}.
{later}, {A} <be> friends with {B.him} again.
{A} <tell> {A.himself} to be more careful next time.

===
A O/A
{A} <be> fond of {O.him} and <use> {O.him} every day.
{time}, {A} <look> at {O.him} and <smile>.
{A} never <leave> home without {O.him}.
{time}, {A} <walk> home with {O.him}.
{A} <have> {O.him} and <show> {O.him} to everyone.

{O} <be> dirty, so {A} <clean> {O.him} {quietly}.
{A} <say> that {O} <bring> luck.
{A} <do> {A.his} best to keep {O.him} safe.
{A} <drop> {O.him}, but {O} <do> not break.
{A} <hide> {O.him} {quietly}, because {A} <trust> nobody.

{later}, {A} <walk> to {L} with {O.him}.
{later}, {A} <hear> that {O} <be> worth a lot.
{A} <be> tired and <fall> asleep next to {O.him}.
{later}, {A} <meet> {B.him}, and {B} <admire> {O.him}.
{A} <ask> {A.himself} if {O} <be> really that good.

{later}, {A} <wake> up and <look> for {O.him}.
{A} <put> {O.him} down for a moment and <forget> {O.him}.
{A} <be> poor, but {A} <do> not want to sell {O.him}.
{A} <laugh> at {A.himself} and <walk> on.
{later}, {D} <come> along and <look> at {O.him}.

{later}, {A} <sell> {O.him} and <buy> {Q.him}.
{A} <change> {A.his} mind and <give> {O.him} to {B.him}.
{A} <go> to bed and <dream> of {O.him}.
{A} <forgive> {A.himself} and <go> home.
{later}, {A} <leave> {O.him} in {M}."""

# Said in between about X: somebody, an animal or a thing that was mentioned.
PERSON_ASIDES = """\
{X} <be> in a good mood and <sing> to {X.himself}.
{X} <be> always in a hurry, so {X} often <forget> to eat.
{X} <be> so {mood} that {X} <cannot> think.
{X} <tell> {X.himself} not to worry.
{X} <be> {mood}, but {X} <do> {X.his} best.
{X} <stop> for a moment and <hold> {X.his} breath.
{X} <look> {mood}.
{X} <be> a little {mood}, as always.
As always, {X} <take> {X.his} time.
{X} never <give> up, even when {X} <be> {mood}."""
ANIMAL_ASIDES = """\
{X} <be> so lazy that {X} <sleep> most of the time.
{X} <be> so hyper that {X} never <stop> moving.
{X} <be> shy, but {X} <like> {A.him}.
{X} <be> {mood}, so {X} <eat> very little.
{X} <look> {mood} and <scratch> {X.himself}.
{X} <clean> {X.himself} and <lie> down.
{X} <do> not like rain.
{X} <take> {X.his} time and <look> around.
{X} <be> {mood}, but {X} <do> {X.his} best to be good."""
THING_ASIDES = """\
{X} <be> lighter than {X} <look>.
{X} <be> worth more than {A} <think>.
{X} <mean> a lot to {A.him}.
{X} <be> not easy to carry.
{X} <be> a little dusty.
{X} <look> as if {X} <come> from far away.
{X} <be> very rare.
{X} <be> as good as new."""


PASTS = (
    "break:broke bring:brought buy:bought catch:caught choose:chose come:came do:did drop:dropped eat:ate fall:fell "
    "feed:fed feel:felt find:found forget:forgot forgive:forgave get:got give:gave go:went grab:grabbed hear:heard "
    "hide:hid hold:held hug:hugged keep:kept know:knew leave:left lend:lent let:let lie:lay lose:lost make:made "
    "mean:meant meet:met prefer:preferred put:put run:ran say:said see:saw sell:sold sing:sang sit:sat sleep:slept "
    "speak:spoke steal:stole stop:stopped take:took tell:told think:thought wake:woke wrap:wrapped"
)
PAST = dict(pair.split(":") for pair in PASTS.split())
IRREGULAR = {
    "be": ("is", "are", "was", "were"),
    "have": ("has", "have", "had", "had"),
    "can": ("can", "can", "could", "could"),
    "cannot": ("cannot", "cannot", "could not", "could not"),
}
