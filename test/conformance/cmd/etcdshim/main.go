// Command etcdshim is kvd in the place of an etcd executable: etcd's test
// frameworks start it with etcd's flags. It translates these into kvd's and
// becomes kvd, so that the framework's signals reach kvd itself.
//
// The file kvd has to lie beside it, and for --auto-tls and --peer-auto-tls a
// directory certs made by "kvd cert init": kvd makes no certificates at startup.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// version is the one that kvd's etcd face answers with. Frameworks choose the
// flags and expectations by it.
const version = "3.7.3"

func main() {
	if err := become(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "etcdshim:", err)
		os.Exit(1)
	}
}

func become(args []string) error {
	given, err := parse(args)
	if err != nil {
		return err
	}
	switch {
	case given.has("version"):
		fmt.Printf("etcd Version: %s\nGit SHA: kvd\nGo Version: go\nGo OS/Arch: linux\n", version)
		return nil
	case given.has("help"):
		// Frameworks look for single flags in it.
		for name := range rules {
			fmt.Printf("  --%s\n", name)
		}
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir := filepath.Dir(self)
	return syscall.Exec(filepath.Join(dir, "kvd"), append([]string{"kvd"}, translate(given, dir)...), environment())
}

// environment leaves etcd's variables out: kvd's own names for the same
// settings have another prefix, and nothing reads these.
func environment() (kept []string) {
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "ETCD_") && !strings.HasPrefix(v, "KVD_") {
			kept = append(kept, v)
		}
	}
	return kept
}
