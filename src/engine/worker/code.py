# ---- code: a map's function and its environment. Shares a namespace with the other modules.
class Unusable(Exception):
    """A definition that does not yield a function."""

    def __init__(self, ename, evalue, lines=""):
        super().__init__(evalue)
        self.body = error_body(ename, evalue, lines)


main = types.ModuleType("__main__")
main.__builtins__ = builtins
namespace = main.__dict__


def remember_source(name, text):
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)


def hint(doing):
    return "%s with %s; set another interpreter with `engine: python:` in the profile" % (doing, PYTHON)


def load_function(source, function, bundle):
    if "bundle" in source:
        place, module = bundle.named["name"], bundle.module()
    else:
        place = source["module"]["module"]
        if bundle is not None:
            bundle.activate()
        try:
            module = importlib.import_module(place)
        except BaseException as error:
            raise failed_import(error, "importing %s" % place)
    found = module
    for part in function.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            defined = "it has " + ", ".join(sorted(names)[:20]) if names else "it has no functions"
            raise Unusable("AttributeError", "%s has no function %r; %s" % (place, function, defined))
    if not callable(found):
        raise Unusable("TypeError", "%s:%s is a %s, not a function" % (place, function, type(found).__name__))
    return found


def failed_import(error, doing):
    message = "%s (%s)" % (text_of(error), hint(doing))
    if isinstance(error, ModuleNotFoundError):
        message = "%s (send your own files with --with PATH; %s; or install the module in that interpreter)" % (text_of(error), hint(doing))
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


def execute(code, filename, file=None):
    """Runs source in the engine's namespace; returns the value of a final expression."""
    import ast

    remember_source(filename, importlib.util.decode_source(code) if isinstance(code, bytes) else code)
    # Like ast.parse, without its frame in the traceback of a syntax error.
    tree = compile(code, filename, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
    if not filename.startswith("<"):
        namespace["__file__"] = file or filename
    try:
        exec(compile(tree, filename, "exec", dont_inherit=True), namespace)
        return eval(compile(last, filename, "eval", dont_inherit=True), namespace) if last else None
    except SystemExit as leaving:
        if leaving.code in (None, 0):
            return None
        raise


class Definition:
    """The work of one map."""

    def __init__(self, work, options, code=None):
        self.work, self.code = work, code
        self.cwd = options.get("cwd")
        self.directory = None if self.cwd else options.get("directory")
        self.env = options.get("env") or {}
        # How the engine prepares the process: variables once, and the processors of pinned tasks.
        process = options.get("process") or {}
        self.unset = process.get("unset", ())
        self.process_env = process.get("env", {})
        self.cores = core_set(process.get("cores", ""))
        # The map has its own worker (the engine uses the same rule).
        self.is_map = work["kind"] == "call" and not options.get("interactive")
        # A map's function once it is loaded, and a descriptor of the working directory of its tasks.
        self.function = self.place = None
        self.reduces = options.get("reduces")
        self.run = self.bundle = self.failure = None
        self.tried_at = 0.0

    def prepare(self):
        """Creates `run`, a function of a task's input; raises Unusable."""
        if self.run is None:
            if self.failure is not None and clock() - self.tried_at < RETRY_AFTER:
                raise self.failure
            self.tried_at = clock()
            kind = self.work["kind"]
            if kind == "call":
                try:
                    self.bundle = self.bundle_of(self.work["from"].get("bundle") or self.reduced_bundle())
                    function = load_function(self.work["from"], self.work["function"], self.bundle)
                except Unusable as failure:
                    self.failure = failure
                    raise
                self.function = function = Fold(function, self.reduces) if self.reduces else function
                self.run = lambda arguments: call(function, arguments)
            elif kind == "execute":
                self.bundle = self.bundle_of(self.work.get("bundle"))
                self.run = lambda _: self.execute()
            elif kind == "push":
                self.run = push
            elif kind == "pull":
                self.run = pull
            else:
                raise Unusable("TypeError", "tasks of kind %r are unknown to this worker" % kind)
        if self.bundle is not None:
            self.bundle.activate()
        return self.run

    def reduced_bundle(self):
        """The bundle with the classes of the values, for a module's function that reduces."""
        return ((self.reduces or {}).get("work", {}).get("from") or {}).get("bundle")

    def bundle_of(self, named):
        return None if named is None else Bundle(named, self.code)

    def execute(self):
        bundle = self.bundle
        if bundle is None:
            return execute(self.work["code"], self.work["filename"])
        with open(bundle.entry, "rb") as file:
            code = file.read()
        return execute(code, bundle.original(bundle.entry), bundle.file(bundle.entry))

    def enter(self):
        """Prepares the first task of a map: directory, environment, and `run`. `run_tasks` does so for later tasks."""
        os.fchdir(home)
        if self.cwd:
            os.chdir(os.path.expanduser(self.cwd))
        elif self.directory:
            go_to(self.directory)
        for name in self.unset:
            os.environ.pop(name, None)
        os.environ.update(self.process_env)
        os.environ.update(self.env)
        if self.cores:
            os.sched_setaffinity(0, self.cores)
        place = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.prepare()
        adopt_streams()
        self.place = place


class Surroundings:
    """Sets working directory and environment for one unit in the interactive worker, and restores them after it. A directory that an
    execution changes itself is kept."""

    def __init__(self, definition):
        self.cwd, self.cores = definition.cwd, definition.cores
        self.env = {**definition.process_env, **definition.env}
        self.restores_directory = definition.cwd or definition.work["kind"] == "call"
        self.directory = definition.directory

    def __enter__(self):
        self.old = {name: os.environ.get(name) for name in self.env}
        self.back = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if self.restores_directory else None
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
        if self.cores:
            self.old_cores = os.sched_getaffinity(0)
            os.sched_setaffinity(0, self.cores)

    def __exit__(self, *_):
        for name, value in self.old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if self.back is not None:
            os.fchdir(self.back)
            os.close(self.back)
        if self.cores:
            os.sched_setaffinity(0, self.old_cores)


def core_set(text):
    """The numbers in a list of processors: `0-3,8`."""
    cores = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return cores


def go_to(directory):
    """Changes to the directory in which a map was submitted, if it exists on this host."""
    try:
        os.chdir(directory)
    except OSError:
        pass


def run_in_surroundings(definition, arguments):
    with Surroundings(definition):
        return definition.prepare()(arguments)


definitions = {}
