package main

import (
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// flag is a flag as etcd would read it.
type flag struct{ name, value string }

// flags are those of one command line, in order.
type flags []flag

func (f flags) has(name string) bool {
	return slices.ContainsFunc(f, func(x flag) bool { return x.name == name })
}

// value returns the flag's last value, or "".
func (f flags) value(name string) (v string) {
	for _, x := range f {
		if x.name == name {
			v = x.value
		}
	}
	return v
}

// rule says what becomes of one of etcd's flags.
type rule struct {
	to     string // kvd's name; "" drops the flag
	toggle bool   // a switch, which may stand without a value
}

// rules has the flags that etcd's suites pass. One that is not here goes to
// kvd as it is, which knows or refuses it.
var rules = map[string]rule{
	"listen-client-urls":      {},
	"advertise-client-urls":   {},
	"listen-client-http-urls": {},
	"auto-tls":                {toggle: true},
	"peer-auto-tls":           {toggle: true},
	"client-cert-auth":        {to: "client-cert-auth", toggle: true},
	"peer-client-cert-auth":   {to: "peer-client-cert-auth", toggle: true},
	"strict-reconfig-check":   {to: "strict-reconfig-check", toggle: true},
	"force-new-cluster":       {to: "force-new-cluster", toggle: true},
	"enable-pprof":            {toggle: true},
	"pre-vote":                {toggle: true},
	"version":                 {toggle: true},
	"help":                    {toggle: true},
	"logger":                  {},
	"log-level":               {to: "log-level"},
	"log-outputs":             {},

	// How etcd paces itself says nothing about what it answers.
	"snapshot-catchup-entries":       {},
	"backend-batch-interval":         {},
	"backend-batch-limit":            {},
	"compaction-batch-limit":         {},
	"compaction-sleep-interval":      {},
	"warning-apply-duration":         {},
	"warning-unary-request-duration": {},
	"unsafe-no-fsync":                {toggle: true},

	// kvd bounds requests instead of the streams of a connection.
	"max-concurrent-streams": {},

	// kvd compares its members' states all the time.
	"corrupt-check-time":      {},
	"compact-hash-check-time": {},
	"feature-gates":           {},
}

// parse reads flags as etcd does: one or two dashes, and the value after "="
// or as the next argument.
func parse(args []string) (all flags, _ error) {
	for len(args) > 0 {
		name, value, inline := strings.Cut(strings.TrimLeft(args[0], "-"), "=")
		if !strings.HasPrefix(args[0], "-") || name == "" {
			return nil, fmt.Errorf("%q is not a flag", args[0])
		}
		args = args[1:]
		switch {
		case inline:
		case rules[name].toggle:
			value = "true"
		case len(args) > 0:
			value, args = args[0], args[1:]
		default:
			return nil, fmt.Errorf("--%s needs a value", name)
		}
		all = append(all, flag{name, value})
	}
	return all, nil
}

// translate returns kvd's arguments, given the directory of the shim.
func translate(given flags, dir string) (args []string) {
	for _, f := range given {
		r, special := rules[f.name]
		switch {
		case !special:
			args = append(args, "--"+f.name+"="+f.value)
		case r.to != "":
			args = append(args, "--"+r.to+"="+f.value)
		}
	}
	args = append(args, listeners(given)...)
	args = append(args, certificates(given, filepath.Join(dir, "certs"))...)
	return append(args, "--log-format=json")
}

// listeners moves etcd's client URLs to the etcd face. kvd's own face gets a
// socket that nobody uses; it serves everything on each URL, also where etcd
// would serve gRPC and HTTP apart.
func listeners(given flags) []string {
	urls := given.value("listen-client-urls")
	if more := given.value("listen-client-http-urls"); more != "" {
		urls += "," + more
	}
	if urls == "" {
		urls = "http://localhost:2379"
	}
	args := []string{"--listen-etcd=" + absolute(urls), "--listen-client=unix://" + socket(given.value("data-dir"))}
	if advertise := given.value("advertise-client-urls"); advertise != "" && !strings.Contains(advertise, "unix") {
		args = append(args, "--advertise-etcd="+advertise)
	}
	return args
}

// absolute gives sockets the whole path that kvd asks for. In etcd's URLs of
// sockets, a path may begin in the directory in which etcd runs.
func absolute(urls string) string {
	dir, err := os.Getwd()
	if err != nil {
		return urls
	}
	list := strings.Split(urls, ",")
	for i, u := range list {
		if path, ok := strings.CutPrefix(u, "unix://"); ok && !filepath.IsAbs(path) {
			list[i] = "unix://" + filepath.Join(dir, path)
		}
	}
	return strings.Join(list, ",")
}

// socket returns a path that is short, as paths of sockets must be, and the
// same again when the member starts anew.
func socket(dataDir string) string {
	h := fnv.New64a()
	h.Write([]byte(dataDir))
	return filepath.Join(os.TempDir(), fmt.Sprintf("kvd-%x.sock", h.Sum64()))
}

// certificates stand in for those that etcd would make for itself.
func certificates(given flags, dir string) (args []string) {
	file := func(name string) string { return filepath.Join(dir, name) }
	if given.value("auto-tls") == "true" && !given.has("cert-file") {
		args = append(args, "--cert-file="+file("member1.pem"), "--key-file="+file("member1-key.pem"))
	}
	if given.value("peer-auto-tls") == "true" && !given.has("peer-cert-file") {
		args = append(args, "--peer-cert-file="+file("member1.pem"), "--peer-key-file="+file("member1-key.pem"), "--peer-trusted-ca-file="+file("ca.pem"))
	}
	return args
}
