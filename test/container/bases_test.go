package container

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// importBuildBase creates the base image of the build stage from the local
// machine: its Go toolchain, the downloaded modules of go.mod, the compiled
// packages of these modules, a shell, and mkdir.
func importBuildBase(t *testing.T, run string) string {
	t.Helper()
	name := run + ":build"
	importImage(t, name, func(w *tar.Writer) error {
		root, cache := goEnv(t, "GOROOT"), filepath.Join(goEnv(t, "GOMODCACHE"), "cache", "download")
		compiled := goEnv(t, "GOCACHE")
		return errors.Join(
			addTree(w, root, "usr/local/go", inToolChain),
			addTree(w, cache, "go/pkg/mod/cache/download", neededModules(t, cache)),
			addTree(w, compiled, "go/build", compiledPackages(t)),
			addPrograms(w, "sh", "mkdir"),
			w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}),
		)
	}, "ENV PATH=/usr/local/go/bin:/bin", "ENV GOPATH=/go GOCACHE=/go/build GOTOOLCHAIN=local")
	return name
}

// importEmptyBase creates an empty image. That kvd runs on it shows that the
// binary is static.
func importEmptyBase(t *testing.T, run string) string {
	t.Helper()
	name := run + ":base"
	importImage(t, name, func(w *tar.Writer) error {
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777})
	})
	return name
}

// importImage creates an image from the files that write writes.
func importImage(t *testing.T, name string, write func(*tar.Writer) error, changes ...string) {
	t.Helper()
	args := []string{"import"}
	for _, c := range changes {
		args = append(args, "--change", c)
	}
	cmd := exec.Command("docker", append(args, "-", name)...)
	in, out := io.Pipe()
	cmd.Stdin = in
	go func() {
		w := tar.NewWriter(out)
		_ = out.CloseWithError(errors.Join(write(w), w.Close())) // the reader gets the error
	}()
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("docker import: %v\n%s", err, text)
	}
	tidy(t, "rmi", "--force", name)
}

func goEnv(t *testing.T, name string) string {
	t.Helper()
	return command(t, "go", "env", name)
}

// inToolChain excludes files that no build needs.
func inToolChain(name string, d fs.DirEntry) bool {
	switch name {
	case "test", "doc", "api", "misc":
		return false
	}
	return d.Name() != "testdata" && !strings.HasSuffix(name, "_test.go")
}

// neededModules selects the modules of go.mod, and the go.mod files of the
// modules that these name.
func neededModules(t *testing.T, cache string) func(string, fs.DirEntry) bool {
	t.Helper()
	needed := make(map[string]bool)
	for d := json.NewDecoder(strings.NewReader(command(t, "go", "mod", "download", "-json"))); d.More(); {
		var m struct{ Zip string }
		if err := d.Decode(&m); err != nil {
			t.Fatal(err)
		}
		rel, err := filepath.Rel(cache, m.Zip)
		if err != nil {
			t.Fatal(err)
		}
		needed[filepath.ToSlash(rel)] = true
	}
	return func(name string, d fs.DirEntry) bool {
		switch path.Ext(name) {
		case ".zip":
			return needed[name]
		case ".ziphash":
			return needed[strings.TrimSuffix(name, "hash")]
		case ".mod", ".info":
			return true
		}
		return d.IsDir() && name != "sumdb"
	}
}

// compiledPackages selects the files of Go's build cache that hold the packages that
// kvd imports, but not its own: the build compiles those. The cache has two files for
// a package: NAME-d is the package, and the text of another one, -a, contains NAME.
func compiledPackages(t *testing.T) func(string, fs.DirEntry) bool {
	t.Helper()
	needed := make(map[string]bool)
	list := command(t, "env", "CGO_ENABLED=0", "go", "list", "-trimpath", "-deps", "-export", "-f", "{{if not (and .Module .Module.Main)}}{{.Export}}{{end}}", "./cmd/kvd")
	for file := range strings.FieldsSeq(list) {
		needed[filepath.Base(file)] = true
	}
	cache := goEnv(t, "GOCACHE")
	return func(name string, d fs.DirEntry) bool {
		if d.IsDir() {
			return len(name) == 2 // not those of the fuzzer
		}
		if !strings.HasSuffix(name, "-a") {
			return needed[d.Name()]
		}
		text, err := os.ReadFile(filepath.Join(cache, name))
		fields := strings.Fields(string(text))
		return err == nil && len(fields) == 5 && needed[fields[2]+"-d"]
	}
}

// addTree adds the files of a directory that keep selects.
func addTree(w *tar.Writer, dir, as string, keep func(name string, d fs.DirEntry) bool) error {
	return filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		switch {
		case rel == ".":
			return nil
		case keep(rel, d):
			return addFile(w, file, path.Join(as, rel))
		case d.IsDir():
			return fs.SkipDir
		}
		return nil
	})
}

// addFile adds one file, directory or link.
func addFile(w *tar.Writer, file, as string) error {
	info, err := os.Lstat(file)
	if err != nil {
		return err
	}
	link := ""
	if info.Mode().Type() == fs.ModeSymlink {
		if link, err = os.Readlink(file); err != nil {
			return err
		}
	}
	head, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	head.Name, head.Uid, head.Gid, head.Uname, head.Gname = as, 0, 0, "", ""
	if info.IsDir() {
		head.Name += "/"
	}
	if err := w.WriteHeader(head); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return errors.Join(err, f.Close())
}

// library matches the files in the output of ldd.
var library = regexp.MustCompile(`/\S+`)

// addPrograms adds programs as /bin/NAME, with the shared libraries that they
// need.
func addPrograms(w *tar.Writer, names ...string) error {
	libraries := make(map[string]bool)
	for _, name := range names {
		file, err := exec.LookPath(name)
		if err != nil {
			return err
		}
		if err := addResolved(w, file, "bin/"+name); err != nil {
			return err
		}
		out, err := exec.Command("ldd", file).Output()
		if err != nil {
			continue // it is static
		}
		for _, lib := range library.FindAllString(string(out), -1) {
			libraries[lib] = true
		}
	}
	for lib := range libraries {
		if err := addResolved(w, lib, strings.TrimPrefix(lib, "/")); err != nil {
			return err
		}
	}
	return nil
}

// addResolved adds the target of a link.
func addResolved(w *tar.Writer, file, as string) error {
	file, err := filepath.EvalSymlinks(file)
	if err != nil {
		return err
	}
	return addFile(w, file, as)
}
