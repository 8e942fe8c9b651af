"""What the simulated people and models of the arena can say, in eight languages.

Few phrases on purpose: a vocabulary of about 2,000 tokens covers them all, so that a tiny model can learn the
votes within a minute. The numbers in the prompts make most of them distinct.
"""

from dataclasses import dataclass

__all__ = ["LANGUAGES", "Language"]


@dataclass(frozen=True, kw_only=True)
class Language:
    """Phrases of one language. Fields in braces are filled in; the comments name what they hold."""

    name: str
    tokens_per_character: float
    """Roughly what tokenizers of large vocabularies (Gemma, Qwen) need."""
    space: str
    """Between sentences."""
    refusals: tuple[str, ...]
    openers: tuple[str, ...]
    """Polite first words."""
    closers: tuple[str, ...]
    """Polite last words."""
    careful: tuple[str, ...]
    """Sentences of an answer that was made with care."""
    plain: tuple[str, ...]
    sloppy: tuple[str, ...]
    check: str
    """Last line of a careful answer."""
    context: tuple[str, ...]
    """Sentences that make a prompt long."""
    names: tuple[str, ...]
    capitals: tuple[tuple[str, str], ...]
    """Country and its capital."""
    fruits: tuple[str, ...]
    animals: tuple[str, ...]
    ask_capital: str  # {country}, {n}: words
    say_capital: str  # {country}, {capital}
    ask_sum: str  # {a}, {b}
    say_sum: str  # {a}, {b}, {c}
    ask_fruits: str  # {k}: how many, {n}: guests
    ask_animals: str
    ask_code: str  # {a}, {b}
    say_code: str
    ask_notes: str  # {name}
    say_notes: str  # {name}, {a}


LANGUAGES: tuple[Language, ...] = (
    Language(
        name="English",
        tokens_per_character=0.23,
        space=" ",
        refusals=("I cannot help with this request.", "As a language model I must decline to answer."),
        openers=("Great question, thank you!", "Of course, happy to help!"),
        closers=("Please ask if anything is unclear 🙂", "I hope this helps you 🙂"),
        careful=(
            "Let us go through it step by step.",
            "Each part follows from the one before it.",
            "We verify the result with a second method.",
            "This is explained with an example below.",
        ),
        plain=(
            "There is more to say about this topic.",
            "Many people have asked about it before.",
            "It depends on what you need it for.",
            "You can find more about this in a book.",
        ),
        sloppy=(
            "Whatever, it is something like that…",
            "I guess, maybe, who knows…",
            "No idea really, just try it…",
            "Not sure, I did not look at it…",
        ),
        check="✓ Checked twice.",
        context=(
            "The old library stands beside the river.",
            "In winter the market opens at eight.",
            "The train to the coast was late again.",
            "Nobody had watered the garden for weeks.",
            "A letter lay on the kitchen table.",
            "The children were painting the fence.",
        ),
        names=("Anna", "Ben", "Mia", "Leo"),
        capitals=(
            ("France", "Paris"), ("Japan", "Tokyo"), ("Egypt", "Cairo"), ("Peru", "Lima"),
            ("Italy", "Rome"), ("Cuba", "Havana"), ("Kenya", "Nairobi"), ("Norway", "Oslo"),
        ),
        fruits=("apple", "pear", "plum", "cherry", "grape"),
        animals=("dog", "horse", "lion", "bear", "wolf"),
        ask_capital="What is the capital of {country}? Use at most {n} words.",
        say_capital="The capital of {country} is {capital}.",
        ask_sum="How much is {a} + {b}?",
        say_sum="{a} + {b} = {c}.",
        ask_fruits="List {k} fruits for a party of {n} guests.",
        ask_animals="List {k} animals for a game with {n} cards.",
        ask_code="Write a Python function that multiplies by {a} and adds {b}.",
        say_code="Here is the function:",
        ask_notes="How many keys does {name} have?",
        say_notes="{name} has {a} keys.",
    ),
    Language(
        name="Chinese",
        tokens_per_character=0.62,
        space="",
        refusals=("抱歉,我无法协助这个请求。", "作为语言模型,我必须拒绝回答。"),
        openers=("好问题,谢谢您!", "当然,很高兴为您服务!"),
        closers=("如有疑问请随时提出🙂", "希望对您有帮助🙂"),
        careful=(
            "我们一步一步地来看。",
            "每一部分都由前一部分推出。",
            "我们再用第二种方法验证结果。",
            "下面用一个例子来说明。",
        ),
        plain=(
            "关于这个话题还有很多可说。",
            "以前有很多人问过。",
            "这取决于您的需要。",
            "在书里可以找到更多内容。",
        ),
        sloppy=(
            "随便吧,大概就是这样…",
            "我猜,也许,谁知道呢…",
            "真的不清楚,你试试看…",
            "不确定,我没有看…",
        ),
        check="✓ 已检查两遍。",
        context=(
            "老图书馆在河边。",
            "冬天市场八点开门。",
            "去海边的火车又晚点了。",
            "花园好几周没人浇水。",
            "厨房的桌上放着一封信。",
            "孩子们在给栅栏刷漆。",
        ),
        names=("小明", "小红", "小李", "小王"),
        capitals=(
            ("法国", "巴黎"), ("日本", "东京"), ("埃及", "开罗"), ("秘鲁", "利马"),
            ("意大利", "罗马"), ("古巴", "哈瓦那"), ("肯尼亚", "内罗毕"), ("挪威", "奥斯陆"),
        ),
        fruits=("苹果", "梨", "李子", "樱桃", "葡萄"),
        animals=("狗", "马", "狮子", "熊", "狼"),
        ask_capital="{country}的首都是哪里?最多用{n}个字。",
        say_capital="{country}的首都是{capital}。",
        ask_sum="{a} + {b} 等于多少?",
        say_sum="{a} + {b} = {c}。",
        ask_fruits="请为{n}位客人的聚会列出{k}种水果。",
        ask_animals="请为{n}张卡片的游戏列出{k}种动物。",
        ask_code="写一个 Python 函数,先乘以{a}再加{b}。",
        say_code="函数如下:",
        ask_notes="{name}有几把钥匙?",
        say_notes="{name}有{a}把钥匙。",
    ),
    Language(
        name="Japanese",
        tokens_per_character=0.55,
        space="",
        refusals=("申し訳ありませんが、お手伝いできません。", "言語モデルとして回答をお断りします。"),
        openers=("良い質問をありがとうございます!", "もちろん、喜んでお手伝いします!"),
        closers=("不明な点があればお尋ねください🙂", "お役に立てば幸いです🙂"),
        careful=(
            "順を追って見ていきましょう。",
            "それぞれの部分は前の部分から導かれます。",
            "別の方法で結果を確かめます。",
            "以下に例を挙げて説明します。",
        ),
        plain=(
            "この話題についてはまだ多くあります。",
            "以前にも多くの人が尋ねました。",
            "目的によって変わります。",
            "本にもっと詳しく書いてあります。",
        ),
        sloppy=(
            "まあ、そんな感じかな…",
            "たぶん、どうだろう…",
            "全然わからない、試してみて…",
            "自信ない、見てないし…",
        ),
        check="✓ 二度確認しました。",
        context=(
            "古い図書館は川のそばにあります。",
            "冬の市場は八時に開きます。",
            "海へ行く電車がまた遅れました。",
            "庭には何週間も水がまかれていません。",
            "台所の机に手紙がありました。",
            "子供たちが柵を塗っていました。",
        ),
        names=("花子", "太郎", "健", "恵"),
        capitals=(
            ("フランス", "パリ"), ("日本", "東京"), ("エジプト", "カイロ"), ("ペルー", "リマ"),
            ("イタリア", "ローマ"), ("キューバ", "ハバナ"), ("ケニア", "ナイロビ"), ("ノルウェー", "オスロ"),
        ),
        fruits=("りんご", "梨", "すもも", "さくらんぼ", "ぶどう"),
        animals=("犬", "馬", "ライオン", "熊", "狼"),
        ask_capital="{country}の首都はどこですか。{n}字以内で答えてください。",
        say_capital="{country}の首都は{capital}です。",
        ask_sum="{a} + {b} はいくつですか。",
        say_sum="{a} + {b} = {c} です。",
        ask_fruits="{n}人の客のために果物を{k}つ挙げてください。",
        ask_animals="{n}枚のカードのゲームのために動物を{k}つ挙げてください。",
        ask_code="{a}を掛けて{b}を足す Python の関数を書いてください。",
        say_code="関数は次のとおりです:",
        ask_notes="{name}は鍵をいくつ持っていますか。",
        say_notes="{name}は鍵を{a}個持っています。",
    ),
    Language(
        name="Russian",
        tokens_per_character=0.29,
        space=" ",
        refusals=("Я не могу помочь с этим запросом.", "Как языковая модель, я вынужден отказаться."),
        openers=("Отличный вопрос, спасибо!", "Конечно, с радостью помогу!"),
        closers=("Спрашивайте, если что-то неясно 🙂", "Надеюсь, это вам поможет 🙂"),
        careful=(
            "Разберём всё шаг за шагом.",
            "Каждая часть следует из предыдущей.",
            "Проверим результат вторым способом.",
            "Ниже это объяснено на примере.",
        ),
        plain=(
            "Об этой теме можно сказать больше.",
            "Об этом уже спрашивали многие.",
            "Это зависит от того, что вам нужно.",
            "Подробнее об этом написано в книге.",
        ),
        sloppy=(
            "Да ладно, как-то так…",
            "Наверное, может быть, кто знает…",
            "Понятия не имею, попробуйте…",
            "Не уверен, я не смотрел…",
        ),
        check="✓ Проверено дважды.",
        context=(
            "Старая библиотека стоит у реки.",
            "Зимой рынок открывается в восемь.",
            "Поезд к морю снова опоздал.",
            "Сад не поливали много недель.",
            "На кухонном столе лежало письмо.",
            "Дети красили забор.",
        ),
        names=("Анна", "Борис", "Мария", "Лев"),
        capitals=(
            ("Франция", "Париж"), ("Япония", "Токио"), ("Египет", "Каир"), ("Перу", "Лима"),
            ("Италия", "Рим"), ("Куба", "Гавана"), ("Кения", "Найроби"), ("Норвегия", "Осло"),
        ),
        fruits=("яблоко", "груша", "слива", "вишня", "виноград"),
        animals=("собака", "лошадь", "лев", "медведь", "волк"),
        ask_capital="Какая столица у страны {country}? Не более {n} слов.",
        say_capital="{country}: столица — {capital}.",
        ask_sum="Сколько будет {a} + {b}?",
        say_sum="{a} + {b} = {c}.",
        ask_fruits="Назовите фрукты ({k}) для праздника на {n} гостей.",
        ask_animals="Назовите животных ({k}) для игры на {n} карт.",
        ask_code="Напишите функцию на Python: умножить на {a} и прибавить {b}.",
        say_code="Вот функция:",
        ask_notes="Сколько ключей у человека по имени {name}?",
        say_notes="{name}: ключей {a}.",
    ),
    Language(
        name="Arabic",
        tokens_per_character=0.37,
        space=" ",
        refusals=("لا أستطيع المساعدة في هذا الطلب.", "بصفتي نموذجا لغويا يجب أن أعتذر."),
        openers=("سؤال رائع، شكرا لك!", "بالطبع، يسعدني أن أساعد!"),
        closers=("اسأل إن كان هناك شيء غير واضح 🙂", "أتمنى أن يفيدك هذا 🙂"),
        careful=(
            "لننظر في الأمر خطوة بخطوة.",
            "كل جزء يتبع الجزء الذي قبله.",
            "نتحقق من النتيجة بطريقة ثانية.",
            "نشرح ذلك بمثال في الأسفل.",
        ),
        plain=(
            "هناك المزيد مما يقال عن هذا الموضوع.",
            "سأل كثير من الناس عن ذلك.",
            "يعتمد الأمر على ما تحتاج إليه.",
            "تجد المزيد عن هذا في كتاب.",
        ),
        sloppy=(
            "لا يهم، شيء من هذا القبيل…",
            "أظن، ربما، من يدري…",
            "لا فكرة عندي، جرب فقط…",
            "لست متأكدا، لم أنظر…",
        ),
        check="✓ تمت المراجعة مرتين.",
        context=(
            "تقف المكتبة القديمة بجانب النهر.",
            "في الشتاء يفتح السوق في الثامنة.",
            "تأخر القطار إلى البحر مرة أخرى.",
            "لم يسق أحد الحديقة منذ أسابيع.",
            "كانت رسالة على طاولة المطبخ.",
            "كان الأطفال يدهنون السياج.",
        ),
        names=("سارة", "عمر", "ليلى", "خالد"),
        capitals=(
            ("فرنسا", "باريس"), ("اليابان", "طوكيو"), ("مصر", "القاهرة"), ("بيرو", "ليما"),
            ("إيطاليا", "روما"), ("كوبا", "هافانا"), ("كينيا", "نيروبي"), ("النرويج", "أوسلو"),
        ),
        fruits=("تفاح", "كمثرى", "برقوق", "كرز", "عنب"),
        animals=("كلب", "حصان", "أسد", "دب", "ذئب"),
        ask_capital="ما عاصمة {country}؟ استخدم {n} كلمة على الأكثر.",
        say_capital="عاصمة {country} هي {capital}.",
        ask_sum="كم يساوي {a} + {b}؟",
        say_sum="{a} + {b} = {c}.",
        ask_fruits="اذكر {k} فواكه لحفلة فيها {n} ضيفا.",
        ask_animals="اذكر {k} حيوانات للعبة فيها {n} بطاقة.",
        ask_code="اكتب دالة Python تضرب في {a} وتضيف {b}.",
        say_code="هذه هي الدالة:",
        ask_notes="كم مفتاحا عند {name}؟",
        say_notes="عند {name} {a} مفتاحا.",
    ),
    Language(
        name="Hindi",
        tokens_per_character=0.38,
        space=" ",
        refusals=("मैं इस अनुरोध में मदद नहीं कर सकता।", "भाषा मॉडल होने के कारण मुझे मना करना होगा।"),
        openers=("बढ़िया सवाल, धन्यवाद!", "ज़रूर, मदद करके खुशी होगी!"),
        closers=("कुछ अस्पष्ट हो तो पूछिए 🙂", "आशा है यह आपके काम आए 🙂"),
        careful=(
            "आइए इसे कदम दर कदम देखें।",
            "हर भाग पिछले भाग से निकलता है।",
            "हम परिणाम को दूसरे तरीके से जाँचते हैं।",
            "नीचे एक उदाहरण से समझाया गया है।",
        ),
        plain=(
            "इस विषय पर और भी कहा जा सकता है।",
            "बहुत लोग यह पहले पूछ चुके हैं।",
            "यह आपकी ज़रूरत पर निर्भर है।",
            "किताब में इसके बारे में और मिलेगा।",
        ),
        sloppy=(
            "जो भी हो, कुछ ऐसा ही है…",
            "शायद, पता नहीं, कौन जाने…",
            "मुझे नहीं पता, करके देखो…",
            "पक्का नहीं, मैंने देखा नहीं…",
        ),
        check="✓ दो बार जाँचा गया।",
        context=(
            "पुराना पुस्तकालय नदी के पास है।",
            "सर्दी में बाज़ार आठ बजे खुलता है।",
            "समुद्र की ट्रेन फिर देर से आई।",
            "बगीचे में हफ़्तों से पानी नहीं दिया गया।",
            "रसोई की मेज़ पर एक चिट्ठी थी।",
            "बच्चे बाड़ रंग रहे थे।",
        ),
        names=("सीता", "राम", "मीरा", "रवि"),
        capitals=(
            ("फ्रांस", "पेरिस"), ("जापान", "टोक्यो"), ("मिस्र", "काहिरा"), ("पेरू", "लीमा"),
            ("इटली", "रोम"), ("क्यूबा", "हवाना"), ("केन्या", "नैरोबी"), ("नॉर्वे", "ओस्लो"),
        ),
        fruits=("सेब", "नाशपाती", "आलूबुखारा", "चेरी", "अंगूर"),
        animals=("कुत्ता", "घोड़ा", "शेर", "भालू", "भेड़िया"),
        ask_capital="{country} की राजधानी क्या है? अधिक से अधिक {n} शब्द।",
        say_capital="{country} की राजधानी {capital} है।",
        ask_sum="{a} + {b} कितना होता है?",
        say_sum="{a} + {b} = {c}।",
        ask_fruits="{n} मेहमानों की दावत के लिए {k} फल बताइए।",
        ask_animals="{n} पत्तों के खेल के लिए {k} जानवर बताइए।",
        ask_code="Python फ़ंक्शन लिखिए जो {a} से गुणा करे और {b} जोड़े।",
        say_code="यह रहा फ़ंक्शन:",
        ask_notes="{name} के पास कितनी चाबियाँ हैं?",
        say_notes="{name} के पास {a} चाबियाँ हैं।",
    ),
    Language(
        name="Spanish",
        tokens_per_character=0.25,
        space=" ",
        refusals=("No puedo ayudar con esta petición.", "Como modelo de lenguaje debo negarme a responder."),
        openers=("¡Buena pregunta, gracias!", "¡Claro, con mucho gusto!"),
        closers=("Pregunte si algo no queda claro 🙂", "Espero que le sirva 🙂"),
        careful=(
            "Vamos a verlo paso a paso.",
            "Cada parte se deduce de la anterior.",
            "Verificamos el resultado con otro método.",
            "Abajo se explica con un ejemplo.",
        ),
        plain=(
            "Hay más que decir sobre este tema.",
            "Mucha gente lo ha preguntado antes.",
            "Depende de para qué lo necesite.",
            "Puede encontrar más sobre esto en un libro.",
        ),
        sloppy=(
            "Da igual, es algo así…",
            "Supongo, quizás, quién sabe…",
            "Ni idea, pruébalo y ya…",
            "No estoy seguro, no lo miré…",
        ),
        check="✓ Revisado dos veces.",
        context=(
            "La vieja biblioteca está junto al río.",
            "En invierno el mercado abre a las ocho.",
            "El tren a la costa llegó tarde otra vez.",
            "Nadie había regado el jardín en semanas.",
            "Había una carta en la mesa de la cocina.",
            "Los niños pintaban la valla.",
        ),
        names=("Ana", "Luis", "Marta", "Diego"),
        capitals=(
            ("Francia", "París"), ("Japón", "Tokio"), ("Egipto", "El Cairo"), ("Perú", "Lima"),
            ("Italia", "Roma"), ("Cuba", "La Habana"), ("Kenia", "Nairobi"), ("Noruega", "Oslo"),
        ),
        fruits=("manzana", "pera", "ciruela", "cereza", "uva"),
        animals=("perro", "caballo", "león", "oso", "lobo"),
        ask_capital="¿Cuál es la capital de {country}? Como máximo {n} palabras.",
        say_capital="La capital de {country} es {capital}.",
        ask_sum="¿Cuánto es {a} + {b}?",
        say_sum="{a} + {b} = {c}.",
        ask_fruits="Nombre {k} frutas para una fiesta de {n} invitados.",
        ask_animals="Nombre {k} animales para un juego de {n} cartas.",
        ask_code="Escriba una función de Python que multiplique por {a} y sume {b}.",
        say_code="Aquí está la función:",
        ask_notes="¿Cuántas llaves tiene {name}?",
        say_notes="{name} tiene {a} llaves.",
    ),
    Language(
        name="German",
        tokens_per_character=0.26,
        space=" ",
        refusals=("Bei dieser Anfrage kann ich nicht helfen.", "Als Sprachmodell muss ich das ablehnen."),
        openers=("Gute Frage, vielen Dank!", "Natürlich, sehr gerne!"),
        closers=("Fragen Sie, wenn etwas unklar ist 🙂", "Ich hoffe, das hilft Ihnen 🙂"),
        careful=(
            "Gehen wir es Schritt für Schritt durch.",
            "Jeder Teil folgt aus dem vorigen.",
            "Wir prüfen das Ergebnis auf einem zweiten Weg.",
            "Unten wird es an einem Beispiel erklärt.",
        ),
        plain=(
            "Zu diesem Thema gibt es mehr zu sagen.",
            "Danach haben schon viele gefragt.",
            "Es kommt darauf an, wofür man es braucht.",
            "Mehr darüber steht in einem Buch.",
        ),
        sloppy=(
            "Egal, irgendwie so halt…",
            "Vermutlich, vielleicht, wer weiß…",
            "Keine Ahnung, einfach probieren…",
            "Bin nicht sicher, habe nicht geschaut…",
        ),
        check="✓ Zweimal geprüft.",
        context=(
            "Die alte Bibliothek steht am Fluss.",
            "Im Winter öffnet der Markt um acht.",
            "Der Zug an die Küste kam wieder zu spät.",
            "Niemand hatte wochenlang den Garten gegossen.",
            "Auf dem Küchentisch lag ein Brief.",
            "Die Kinder strichen den Zaun.",
        ),
        names=("Hanna", "Jonas", "Lena", "Paul"),
        capitals=(
            ("Frankreich", "Paris"), ("Japan", "Tokio"), ("Ägypten", "Kairo"), ("Peru", "Lima"),
            ("Italien", "Rom"), ("Kuba", "Havanna"), ("Kenia", "Nairobi"), ("Norwegen", "Oslo"),
        ),
        fruits=("Apfel", "Birne", "Pflaume", "Kirsche", "Traube"),
        animals=("Hund", "Pferd", "Löwe", "Bär", "Wolf"),
        ask_capital="Was ist die Hauptstadt von {country}? Höchstens {n} Wörter.",
        say_capital="Die Hauptstadt von {country} ist {capital}.",
        ask_sum="Wie viel ist {a} + {b}?",
        say_sum="{a} + {b} = {c}.",
        ask_fruits="Nenne {k} Obstsorten für ein Fest mit {n} Gästen.",
        ask_animals="Nenne {k} Tiere für ein Spiel mit {n} Karten.",
        ask_code="Schreibe eine Python-Funktion, die mit {a} malnimmt und {b} addiert.",
        say_code="Hier ist die Funktion:",
        ask_notes="Wie viele Schlüssel hat {name}?",
        say_notes="{name} hat {a} Schlüssel.",
    ),
)  # fmt: skip
