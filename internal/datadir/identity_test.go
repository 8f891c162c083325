package datadir

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/zap"
)

func mustOpenDir(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestDirectoryIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	d := mustOpenDir(t, path)
	if err := errors.Join(d.Close(), os.Chmod(path, 0o755)); err != nil {
		t.Fatal(err)
	}
	mustOpenDir(t, path)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestDirectoryInUseIsRefusedByName(t *testing.T) {
	path := t.TempDir()
	d := mustOpenDir(t, path)
	for range 2 { // a failed attempt must not erase the holder's pid
		_, err := Open(path)
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "pid "+strconv.Itoa(os.Getpid())+")") {
			t.Fatalf("a second open: %v", err)
		}
	}
	if report, err := Examine(path); err != nil || report.HeldBy != strconv.Itoa(os.Getpid()) || !strings.Contains(report.String(), "in use") {
		t.Errorf("Examine: %+v, %v", report, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpenDir(t, path)
}

func TestIdentityIsKept(t *testing.T) {
	path := t.TempDir()
	d := mustOpenDir(t, path)
	if id, known := d.Identity(); known {
		t.Fatalf("a fresh directory belongs to %+v", id)
	}
	if err := d.Claim(7, 0xabc, 0, "seven"); err != nil {
		t.Fatal(err)
	}
	claimed, _ := d.Identity()
	if err := errors.Join(d.Claim(7, 0xdef, 0, "seven"), d.MarkRemoved(), d.Close()); err != nil {
		t.Fatal(err)
	}
	id, err := readIdentity(path)
	want := Identity{Format: 1, MemberID: 7, Name: "seven", ClusterID: 0xdef, Nonce: claimed.Nonce, State: StateRemoved}
	if err != nil || id != want {
		t.Errorf("%+v, %v, want %+v", id, err, want)
	}
	if one, other := NewNonce(), NewNonce(); len(claimed.Nonce) != 32 || one == other {
		t.Errorf("nonce %q", claimed.Nonce)
	}
}

func TestIdentityDamaged(t *testing.T) {
	path := t.TempDir()
	d := mustOpenDir(t, path)
	if err := errors.Join(d.Claim(7, 0xabc, 0, "seven"), d.Close()); err != nil {
		t.Fatal(err)
	}
	change(t, identityPath(path), func(b []byte) []byte {
		return []byte(strings.Replace(string(b), `"member_id": 7`, `"member_id": 6`, 1))
	})
	var refused *RefusedError
	if _, err := Open(path); !errors.As(err, &refused) || refused.File != identityPath(path) {
		t.Errorf("%v", err)
	}
	// The refusal has released the lock.
	if _, err := Open(path); !errors.As(err, &refused) {
		t.Errorf("the second time: %v", err)
	}
}

func TestIdentityOfANewerFormat(t *testing.T) {
	dir := t.TempDir()
	d := &Dir{path: dir}
	if err := d.write(Identity{Format: identityFormat + 1, MemberID: 1, Nonce: NewNonce(), State: StateNew}); err != nil {
		t.Fatal(err)
	}
	if _, err := readIdentity(dir); err == nil || !strings.Contains(err.Error(), "upgrade") {
		t.Errorf("%v", err)
	}
}

func TestAdmittedWithoutALog(t *testing.T) {
	path := t.TempDir()
	d := mustOpenDir(t, path)
	if err := errors.Join(d.Claim(7, 0xabc, 0, "seven"), d.MarkStarted(), d.Close()); err != nil {
		t.Fatal(err)
	}
	_, err := Open(path)
	var refused *RefusedError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "log is missing") {
		t.Fatalf("%v", err)
	}
	if report, derr := Examine(path); derr != nil || report.Refused == nil || report.Refused.Error() != err.Error() {
		t.Errorf("Examine: %s, %v", report.Verdict(), derr)
	}
}

// TestLogOfAnotherMember: a log that was copied from the directory of another member, or
// of another cluster, is refused by starts and by the doctor, and not touched.
func TestLogOfAnotherMember(t *testing.T) {
	for _, other := range []Owner{{MemberID: 8, ClusterID: 0xabc}, {MemberID: 7, ClusterID: 0xdef}} {
		path := t.TempDir()
		if err := mustOpenDir(t, path).Claim(7, 0xabc, 0, "seven"); err != nil {
			t.Fatal(err)
		}
		log, _, err := OpenLog(zap.NewNop(), path, other)
		if err != nil {
			t.Fatal(err)
		}
		mustSave(t, log, hardStateAt(1, 7, 0), entryAt(1, 1, 10))
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
		before := readTree(t, path)
		var refused *RefusedError
		if _, _, err := OpenLog(zap.NewNop(), path, Owner{MemberID: 7, ClusterID: 0xabc}); !errors.As(err, &refused) || !strings.Contains(err.Error(), "the log belongs to member") {
			t.Errorf("the log of member %d of cluster %x: %v", other.MemberID, other.ClusterID, err)
		}
		if report, err := Examine(path); err != nil || report.Refused == nil {
			t.Errorf("the doctor says %s, %v", report.Verdict(), err)
		}
		if !maps.EqualFunc(before, readTree(t, path), bytes.Equal) {
			t.Error("the refused directory was changed")
		}
	}
}

func TestWatermarkOfAnotherMember(t *testing.T) {
	path := t.TempDir()
	d := mustOpenDir(t, path)
	if err := d.Claim(7, 0xabc, 0, "seven"); err != nil {
		t.Fatal(err)
	}
	log := mustCreateLog(t, path)
	mustSave(t, log, hardStateAt(1, 7, 0), entryAt(1, 1, 10))
	if err := errors.Join(log.Close(), d.Claim(8, 0xabc, 0, "eight")); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, path, "the watermark belongs to member 7, but the directory belongs to member 8")
}

// TestIdentityIsReplacedAtOnce: a crash leaves the old identity or the new one, and
// perhaps half of a temporary file, which the next write truncates first.
func TestIdentityIsReplacedAtOnce(t *testing.T) {
	path := t.TempDir()
	d := mustOpenDir(t, path)
	if err := d.Claim(7, 0xabc, 0, "seven"); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(identityPath(path))
	if err != nil {
		t.Fatal(err)
	}
	reader, err := os.Open(identityPath(path))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	writeFile(t, identityPath(path)+".tmp", strings.Repeat("half of a longer identity", 40))
	if id, err := readIdentity(path); err != nil || id.State != StateNew {
		t.Errorf("after a crash: %+v, %v", id, err)
	}
	if err := d.MarkRemoved(); err != nil {
		t.Fatal(err)
	}
	if id, err := readIdentity(path); err != nil || id.State != StateRemoved {
		t.Errorf("after the next write: %+v, %v", id, err)
	}
	seen := make([]byte, len(old)+1)
	if n, _ := reader.Read(seen); string(seen[:n]) != string(old) {
		t.Errorf("the old file was overwritten: %q", seen[:n])
	}
	if info, err := os.Stat(identityPath(path)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// TestIdentityEveryByte: every changed byte is detected, or does not matter.
func TestIdentityEveryByte(t *testing.T) {
	path := t.TempDir()
	d := mustOpenDir(t, path)
	if err := d.Claim(7, 0xabc, 0, "seven"); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(identityPath(path))
	if err != nil {
		t.Fatal(err)
	}
	want, _ := d.Identity()
	for i := range whole {
		for bit := range 8 {
			b := append([]byte(nil), whole...)
			b[i] ^= 1 << bit
			writeFile(t, identityPath(path), string(b))
			if id, err := readIdentity(path); err == nil && id != want {
				t.Fatalf("bit %d of byte %d changed: %+v", bit, i, id)
			}
		}
	}
	for length := range len(whole) - 2 { // the last byte is a newline, the one before closes the object
		writeFile(t, identityPath(path), string(whole[:length]))
		if id, err := readIdentity(path); err == nil {
			t.Fatalf("cut to %d bytes: %+v", length, id)
		}
	}
}
