package sidebyside

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestImportedUsers moves users from a real etcd with rights, as docs/auth.md says: import,
// passwords, rights. Then both answer the same clients in the same way.
func TestImportedUsers(t *testing.T) {
	bin := os.Getenv("CONFORMANCE_BIN")
	if bin == "" {
		t.Skip("it needs what make conformance builds: CONFORMANCE_BIN names the directory")
	}
	etcd := start(t, "etcd", buildEtcd(t), bin)
	native := "http://" + freeAddress(t)
	kvd := startWith(t, "kvd", filepath.Join(bin, "kvd"), bin, "--data-dir", filepath.Join(t.TempDir(), "data"),
		"--listen-client", native, "--listen-peer", "http://"+freeAddress(t))
	etcd.must(t, "etcdctl role add team && etcdctl role grant-permission team --prefix=true readwrite team/ && etcdctl role grant-permission team read shared")
	etcd.must(t, "etcdctl user add root:root-of-etcd && etcdctl user grant-role root root && etcdctl user add ann:ann-of-etcd && etcdctl user grant-role ann team")
	etcd.must(t, "etcdctl auth enable")

	imports := "echo root-of-etcd | kvd auth import --from etcd:http://" + etcd.address + " --from-user root --from-password-file - --endpoints " + native
	if out := kvd.must(t, imports); !strings.Contains(out, "made 1 roles and 2 users") || !strings.Contains(out, "ann") {
		t.Errorf("the import says %s", out)
	}
	if out := kvd.must(t, imports); !strings.Contains(out, "made 0 roles and 0 users") { // again, while rights are disabled
		t.Errorf("the second import says %s", out)
	}
	kvd.must(t, "echo ann-of-etcd | kvd user passwd ann --password-file - --endpoints "+native)
	kvd.must(t, "echo root-of-etcd | kvd auth init --password-file - --endpoints "+native)
	for _, line := range []string{
		"etcdctl --user ann:ann-of-etcd put team/a 1", "etcdctl --user ann:ann-of-etcd get team/a", "etcdctl --user ann:ann-of-etcd get team/ --prefix",
		"etcdctl --user ann:ann-of-etcd get shared", "etcdctl --user ann:ann-of-etcd put shared 1", "etcdctl --user ann:ann-of-etcd get other",
		"etcdctl --user ann:ann-of-etcd get team0", "etcdctl --user ann:wrong get team/a", "etcdctl get team/a",
		"etcdctl --user root:root-of-etcd user get ann", "etcdctl --user root:root-of-etcd role get team", "etcdctl --user root:root-of-etcd user list",
	} {
		if got, want := outcome(kvd.run(t.Context(), "$ "+line)), outcome(etcd.run(t.Context(), "$ "+line)); got != want {
			t.Errorf("%s\n%s", line, differing(got, want))
		}
	}
}

// outcome leaves out the lines of etcdctl's own log, which have times.
func outcome(out string) string {
	lines := strings.Split(normalize(out), "\n")
	kept := lines[:0]
	for _, l := range lines {
		if !strings.HasPrefix(l, `{"level"`) {
			kept = append(kept, l)
		}
	}
	return strings.Join(kept, "\n")
}
