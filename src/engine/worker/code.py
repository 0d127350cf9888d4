# ---- code: what a map runs, and where. One namespace with the other parts.
class Unusable(Exception):
    """A definition from which no function can be had."""

    def __init__(self, ename, evalue, lines=""):
        super().__init__(evalue)
        self.body = error_body(ename, evalue, lines)


main = types.ModuleType("__main__")
main.__builtins__ = builtins
namespace = main.__dict__
# What `__name__` of a shipped file is, to the definition that last held it in sys.modules.
shipped = {}


def module_name(path):
    """A file's module name, made unlike those of modules that are there already."""
    name = os.path.splitext(os.path.basename(path))[0]
    if not name.isidentifier():
        return "pcluster_file"
    if name in shipped:
        return name
    taken = name in sys.modules or name in getattr(sys, "stdlib_module_names", sys.builtin_module_names)
    return "pcluster_" + name if taken else name


def remember_source(name, text):
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)


@functools.lru_cache(maxsize=32)
def compiled(text, place):
    """Maps of one function come one after the other."""
    return compile(text, place, "exec", dont_inherit=True)


def hint(doing):
    return "%s with %s; another interpreter is set as `engine: python:` in the profile" % (doing, PYTHON)


def load_function(source, function):
    if "module" in source:
        place = source["module"]["module"]
        try:
            module = importlib.import_module(place)
        except BaseException as error:
            raise failed_import(error, "importing %s" % place)
    else:
        place, text = source["file"]["name"], source["file"]["text"]
        remember_source(place, text)
        try:
            code = compiled(text, place)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            where = ", line %d" % line if line else ""
            what = "%s%s does not compile: %s" % (place, where, getattr(error, "msg", None) or text_of(error))
            lines = "".join(traceback.format_exception_only(type(error), error))
            raise Unusable(type(error).__name__, hint(what), lines)
        name = module_name(place)
        module = types.ModuleType(name)
        module.__file__ = place
        sys.modules[name] = shipped[name] = module
        try:
            exec(code, module.__dict__)
        except BaseException as error:
            raise failed_import(error, "running the top level of %s" % place)
    found = module
    for part in function.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            there = "it has " + ", ".join(sorted(names)[:20]) if names else "it has no functions"
            raise Unusable("AttributeError", "%s has no function %r; %s" % (place, function, there))
    if not callable(found):
        raise Unusable("TypeError", "%s:%s is a %s, not a function" % (place, function, type(found).__name__))
    return module, found


def failed_import(error, doing):
    message = "%s (%s)" % (text_of(error), hint(doing))
    if isinstance(error, ModuleNotFoundError):
        message = "%s (%s; install the module there)" % (text_of(error), hint(doing))
    return Unusable(type(error).__name__, message, formatted(error))


def call(function, arguments):
    if type(arguments) is list:
        return function(*arguments)
    if type(arguments) is dict:
        return function(**arguments)
    return function(arguments)


def push(names):
    namespace.update(names)


def pull(names):
    missing = [name for name in names if name not in namespace]
    if missing:
        raise NameError("not defined on this engine: %s" % ", ".join(missing))
    return {name: namespace[name] for name in names}


def execute(code, filename):
    """Runs source in the engine's namespace; the value is that of a last expression."""
    import ast

    remember_source(filename, code)
    tree = ast.parse(code, filename)
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
    if not filename.startswith("<"):
        namespace["__file__"] = filename
    try:
        exec(compile(tree, filename, "exec", dont_inherit=True), namespace)
        return eval(compile(last, filename, "eval", dont_inherit=True), namespace) if last else None
    except SystemExit as leaving:
        if leaving.code in (None, 0):
            return None
        raise


class Definition:
    """What one map runs."""

    def __init__(self, work, options):
        self.work = work
        self.cwd = options.get("cwd")
        self.directory = None if self.cwd else options.get("directory")
        self.env = options.get("env") or {}
        # It has a worker of its own, as the engine knows, too.
        self.is_map = work["kind"] == "call" and not options.get("interactive")
        # A descriptor of the directory in which a map's tasks run.
        self.place = None
        self.reduces = options.get("reduces")
        self.run = self.module = self.failure = None
        self.tried = 0.0

    def prepare(self):
        """Makes `run`, a function of a task's input; raises Unusable."""
        if self.run is None:
            if self.failure is not None and clock() - self.tried < RETRY_AFTER:
                raise self.failure
            self.tried = clock()
            kind = self.work["kind"]
            if kind == "call":
                try:
                    self.module, function = load_function(self.work["from"], self.work["function"])
                except Unusable as failure:
                    self.failure = failure
                    raise
                self.run = Fold(function, self.reduces) if self.reduces else lambda arguments: call(function, arguments)
                self.function = function
            elif kind == "execute":
                code, filename = self.work["code"], self.work["filename"]
                self.run = lambda _: execute(code, filename)
            elif kind == "push":
                self.run = push
            elif kind == "pull":
                self.run = pull
            else:
                raise Unusable("TypeError", "tasks of kind %r are unknown to this worker" % kind)
        if self.module is not None and shipped.get(self.module.__name__, self.module) is not self.module:
            # Another version of the same file has run since.
            sys.modules[self.module.__name__] = shipped[self.module.__name__] = self.module
            remember_source(self.work["from"]["file"]["name"], self.work["from"]["file"]["text"])
        return self.run


    def enter(self):
        """Before each task of a map: to its directory and environment, whatever the one before has done; and `run` is there."""
        if self.place is None:
            os.fchdir(home)
            if self.cwd:
                os.chdir(os.path.expanduser(self.cwd))
            elif self.directory:
                go_to(self.directory)
            self.place = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            fchdir(self.place)
        if self.env:
            os.environ.update(self.env)
        if self.run is None:
            self.prepare()
            adopt_streams()


class Surroundings:
    """Working directory and environment of a call in the interactive worker, for its time; of other interactive work only those that it was given."""

    def __init__(self, definition):
        self.cwd, self.env = definition.cwd, definition.env
        self.comes_back = definition.cwd or definition.work["kind"] == "call"
        self.directory = definition.directory

    def __enter__(self):
        self.old = {name: os.environ.get(name) for name in self.env}
        self.back = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if self.comes_back else None
        try:
            if self.cwd:
                os.chdir(os.path.expanduser(self.cwd))
            elif self.directory:
                go_to(self.directory)
        except BaseException:
            if self.back is not None:
                os.close(self.back)
            raise
        os.environ.update(self.env)

    def __exit__(self, *_):
        for name, value in self.old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if self.back is not None:
            os.fchdir(self.back)
            os.close(self.back)


def go_to(directory):
    """Changes to where a map was submitted, if this host has it."""
    try:
        os.chdir(directory)
    except OSError:
        pass


def run_in_surroundings(definition, arguments):
    with Surroundings(definition):
        return definition.prepare()(arguments)


definitions = {}
