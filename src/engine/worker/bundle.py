# ---- bundle: the user's files as modules. Shares a namespace with the other modules.
# Modules that `python script.py` imports before it searches the script's directory.
AT_START = frozenset("__main__ abc codecs encodings genericpath importlib io os posixpath site stat zipimport".split())
active = None


class BundleLoader(importlib.machinery.SourceFileLoader):
    """Compiles a module under its original path."""

    def get_code(self, fullname):
        data, shown = self.get_data(self.path), self.bundle.original(self.path)
        self.bundle.shown.add(shown)
        try:
            remember_source(shown, importlib.util.decode_source(data))
        except (SyntaxError, UnicodeError):
            pass  # compile reports it
        return compile(data, shown, "exec", dont_inherit=True)


class BundleFinder(importlib.machinery.FileFinder):
    """Finds modules in one directory of a bundle, like Python."""

    def __init__(self, bundle, path):
        def loader(fullname, path):
            made = BundleLoader(fullname, path)
            made.bundle = bundle
            return made

        compiled = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
        super().__init__(path, compiled, (loader, importlib.machinery.SOURCE_SUFFIXES))
        self.bundle = bundle

    def find_spec(self, fullname, target=None):
        spec = super().find_spec(fullname, target)
        if spec is not None and isinstance(spec.loader, BundleLoader):
            spec.origin = self.bundle.file(spec.origin)  # becomes __file__
        return spec


def find_in_bundle(path):
    if active is None or not active.has(path):
        raise ImportError(path)
    return BundleFinder(active, path)


sys.path_hooks.insert(0, find_in_bundle)


class Bundle:
    """The files of one map's code, in a directory of this engine, and the modules imported from it."""

    def __init__(self, named, place):
        if "directory" not in (place or {}):
            why = (place or {}).get("missing", "the engine has not received it")
            raise Unusable("CodeMissing", "the code of %s is not on this engine: %s" % (named["name"], why))
        self.root, self.named = place["directory"], named
        self.entry = os.path.join(self.root, named["entry"])
        self.modules, self.displaced, self.shown, self.main = {}, {}, set(), None
        self.names = set()
        for entry in os.scandir(self.root):
            if entry.name.endswith((".py", ".so")):
                self.names.add(entry.name.partition(".")[0])
            elif entry.is_dir() and os.path.exists(os.path.join(entry.path, "__init__.py")):
                self.names.add(entry.name)

    def has(self, path):
        return path == self.root or path.startswith(self.root + os.sep)

    def original(self, path):
        """The original path of this file."""
        rest, moved = path[len(self.root) + 1 :], self.named.get("moved") or {}
        first, _, below = rest.partition("/")
        if rest in moved:
            return moved[rest]
        return os.path.join(moved[first], below) if first in moved else os.path.join(self.named["origin"], rest)

    def file(self, path):
        """`__file__`: the original file if it exists on this host, so that files beside it are found; otherwise the one in the bundle,
        beside the files that were sent with it."""
        original = self.original(path)
        return original if not self.named.get("with") and os.path.exists(original) else path

    def owns(self, module):
        spec = getattr(module, "__spec__", None)
        loader = getattr(spec, "loader", None)
        if isinstance(loader, BundleLoader):
            return loader.bundle is self
        places = [getattr(spec, "origin", None)] + list(getattr(spec, "submodule_search_locations", None) or ())
        return any(isinstance(place, str) and self.has(place) for place in places)

    def hides(self, name):
        """Returns whether this bundle shadows an imported module, like a script's directory would."""
        first = name.partition(".")[0]
        if first not in self.names or first in AT_START or first in sys.builtin_module_names:
            return False
        return getattr(getattr(sys.modules[name], "__spec__", None), "origin", None) != "frozen"

    def activate(self):
        """Makes `import` find its modules."""
        global active
        if active is self:
            return
        if active is not None:
            active.deactivate()
        active = self
        # A module's parent package is imported too, so checking top-level names suffices; iterating over all modules would be slow.
        is_met = any(name in sys.modules for name in self.names)
        self.displaced = {name: sys.modules.pop(name) for name in list(sys.modules) if self.hides(name)} if is_met else {}
        sys.modules.update(self.modules)
        sys.path.insert(0, self.root)

    def deactivate(self):
        global active
        active = None
        self.modules = {name: module for name, module in list(sys.modules.items()) if self.owns(module)}
        for name in self.modules:
            del sys.modules[name]
        for name, module in self.displaced.items():
            sys.modules.setdefault(name, module)
        sys.path[:] = [path for path in sys.path if path != self.root]
        for path in [path for path in sys.path_importer_cache if self.has(path)]:
            del sys.path_importer_cache[path]

    def module(self):
        """Imports the user's file as a module of its own name, under which child processes find it too."""
        self.activate()
        name = self.named["entry"][: -len(".py")].replace("/", ".")
        if name.endswith(".__init__"):
            name = name[: -len(".__init__")]
        place = self.named["name"]
        try:
            __import__(name)
        except BaseException as error:
            if isinstance(error, SyntaxError) and error.filename in self.shown:
                raise self.does_not_compile(error)
            raise failed_import(error, "running the top level of %s" % place)
        # Referenced, so that Python finalizes it at exit like other modules.
        self.main = sys.modules[name]
        return self.main

    def does_not_compile(self, error):
        own = error.filename == self.original(self.entry)
        where = ", line %d" % error.lineno if error.lineno else ""
        what = "%s%s does not compile: %s" % (self.named["name"] if own else error.filename, where, error.msg or text_of(error))
        lines = "".join(traceback.format_exception_only(type(error), error))
        return Unusable(type(error).__name__, "%s (%s)" % (what, hint("compiled")), lines)
