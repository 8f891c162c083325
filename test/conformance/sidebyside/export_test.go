package sidebyside

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestExportedStore moves a store to a real etcd: kvd export etcd writes a file that etcdutl
// takes for a snapshot, and the etcd that is restored from it has the same pairs with the
// same metadata at the same revision, and the same leases, and goes on from there.
func TestExportedStore(t *testing.T) {
	bin := os.Getenv("CONFORMANCE_BIN")
	if bin == "" {
		t.Skip("it needs what make conformance builds: CONFORMANCE_BIN names the directory")
	}
	native := "http://" + freeAddress(t)
	kvd := startWith(t, "kvd", filepath.Join(bin, "kvd"), bin, "--data-dir", filepath.Join(t.TempDir(), "data"),
		"--listen-client", native, "--listen-peer", "http://"+freeAddress(t))
	kvd.must(t, `for i in $(seq 1 300); do echo "key$i"; done | xargs -P 8 -I{} etcdctl put {} "value of {}" >put.log`)
	kvd.must(t, `etcdctl put key7 again && printf '\xff\x00' | etcdctl put "$(printf 'b\xfe')" && printf 'mod("none") = "0"\n\nput one 1\nput two 2\n\n\n' | etcdctl txn`)
	lease := strings.Fields(kvd.must(t, "etcdctl lease grant 600"))[1]
	kvd.must(t, "etcdctl put --lease="+lease+" leased x && etcdctl put gone y && etcdctl del gone")
	kvd.must(t, "kvd export etcd store.db --endpoints "+native)

	var status struct {
		Revision int64
		TotalKey int
	}
	out := kvd.must(t, "etcdutl snapshot status store.db -w json")
	if err := json.Unmarshal([]byte(out), &status); err != nil || status.TotalKey != 304 {
		t.Errorf("etcdutl says %s, %v", out, err)
	}
	peer := "http://" + freeAddress(t)
	place := fmt.Sprintf("--name default --initial-cluster default=%s --initial-advertise-peer-urls %s", peer, peer)
	kvd.must(t, "etcdutl snapshot restore store.db --data-dir restored "+place)
	data := filepath.Join(kvd.dir, "work", "restored")
	etcd := startWith(t, "etcd", buildEtcd(t), bin, append(strings.Fields(place), "--data-dir", data, "--listen-peer-urls", peer)...)

	for _, look := range []string{"etcdctl get '' --prefix -w fields | grep -v ID", "etcdctl lease list", "etcdctl lease timetolive " + lease + " --keys | sed 's/remaining([0-9]*s)//'"} {
		if got, want := etcd.must(t, look), kvd.must(t, look); dropTerm(got) != dropTerm(want) {
			t.Errorf("%s\n%s", look, differing(got, want))
		}
	}
	for _, a := range []*target{etcd, kvd} {
		a.must(t, "etcdctl put next z")
	}
	if got, want := etcd.must(t, "etcdctl get next -w fields | grep -v ID"), kvd.must(t, "etcdctl get next -w fields | grep -v ID"); dropTerm(got) != dropTerm(want) {
		t.Errorf("the next put\n%s", differing(got, want))
	}
}

// must runs a command line that has to succeed.
func (a *target) must(t *testing.T, line string) string {
	t.Helper()
	out := a.shell(t.Context(), line)
	if strings.Contains(out, "\nexit ") || strings.HasPrefix(out, "exit ") {
		t.Fatalf("%s, %s:\n%s", a.name, line, out)
	}
	return out
}

// dropTerm removes the line of the term, in which the two need not agree.
func dropTerm(fields string) string {
	var kept []string
	for _, line := range strings.Split(fields, "\n") {
		if !strings.HasPrefix(line, `"RaftTerm"`) {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "\n")
}
