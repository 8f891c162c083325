package datadir

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// planting restores the text as a backup. Verify accepts texts that begin with "good".
func planting(text string) Planting {
	return Planting{MemberID: 3, Rendezvous: 9, Body: strings.NewReader(text), Verify: func(r io.Reader) error {
		b, err := io.ReadAll(r)
		if err == nil && !strings.HasPrefix(string(b), "good") {
			err = errors.New("damaged")
		}
		return err
	}}
}

func readAll(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err }

func TestPlant(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new")
	if err := Plant(path, planting("good one")); err != nil {
		t.Fatal(err)
	}
	d := mustOpenDir(t, path)
	id, known := d.Identity()
	if !known || id.MemberID != 3 || id.Rendezvous != 9 || id.ClusterID != 0 || id.State != StateNew || id.Nonce == "" || d.Seed() == "" {
		t.Errorf("%+v", id)
	}
	var got string
	restore := func(r io.Reader) error { b, err := io.ReadAll(r); got = string(b); return err }
	if err := d.ReadSeed(restore); err != nil || got != "good one" {
		t.Errorf("%q, %v", got, err)
	}
	// An acceptor's writes keep the seed, and only a charter with it is adopted.
	if err := d.KeepFounding(3, 9, "", Founding{Promised: Ballot{1, 3}}); err != nil || d.Seed() != id.Seed {
		t.Errorf("seed %q, %v", d.Seed(), err)
	}
	c := &Charter{ClusterID: 5, Members: []Founder{{ID: 3, Nonce: id.Nonce}}}
	if err := d.Adopt(3, 9, "", c); err == nil {
		t.Error("a charter without the seed is adopted")
	}
	c.Seed = id.Seed
	if err := d.Adopt(3, 9, "", c); err != nil || d.Seed() != id.Seed {
		t.Errorf("seed %q, %v", d.Seed(), err)
	}
}

// Two files that are both intact are two seeds: members that begin with different
// states must not found one cluster.
func TestSeedsAreNamedByContent(t *testing.T) {
	seeds := make(map[string]bool)
	for _, text := range []string{"good one", "good one", "good other"} {
		path := t.TempDir()
		if err := Plant(path, planting(text)); err != nil {
			t.Fatal(err)
		}
		seeds[mustOpenDir(t, path).Seed()] = true
	}
	if len(seeds) != 2 {
		t.Errorf("%v", seeds)
	}
}

func TestSeedThatChanged(t *testing.T) {
	path := t.TempDir()
	if err := Plant(path, planting("good one")); err != nil {
		t.Fatal(err)
	}
	d := mustOpenDir(t, path)
	var refused *RefusedError
	for _, text := range []string{"good other", ""} {
		if err := os.WriteFile(SeedPath(path), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.ReadSeed(readAll); !errors.As(err, &refused) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := os.Remove(SeedPath(path)); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadSeed(readAll); !errors.As(err, &refused) {
		t.Errorf("a lost seed: %v", err)
	}
	id, _ := d.Identity()
	id.Seed = "2-" + strings.TrimPrefix(id.Seed, "1-")
	if err := d.write(id); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadSeed(readAll); err == nil || !strings.Contains(err.Error(), "version") {
		t.Errorf("a seed of another version: %v", err)
	}
}

// TestPlantRefuses: a directory with anything in it, whatever it is.
func TestPlantRefuses(t *testing.T) {
	for _, name := range []string{"member.json", "wal", "store", "anything"} {
		path := t.TempDir()
		if err := os.Mkdir(filepath.Join(path, name), 0o700); err != nil {
			t.Fatal(err)
		}
		before := readTree(t, path)
		var refused *RefusedError
		if err := Plant(path, planting("good one")); !errors.As(err, &refused) || !strings.Contains(refused.File, name) {
			t.Errorf("%s: %v", name, err)
		}
		sameTree(t, before, readTree(t, path))
	}
	path := t.TempDir()
	if err := Plant(path, planting("good one")); err != nil {
		t.Fatal(err)
	}
	if err := Plant(path, planting("good one")); err == nil {
		t.Error("a restored directory is restored again")
	}
	held := t.TempDir()
	mustOpenDir(t, held)
	if err := Plant(held, planting("good one")); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a directory in use: %v", err)
	}
}

// TestInterruptedRestore: whatever a crash leaves before the identity is there, no node
// starts with it, and another restore succeeds.
func TestInterruptedRestore(t *testing.T) {
	for _, left := range [][]string{{"seed.db.tmp"}, {"seed.db"}, {"seed.db", "member.json.tmp"}} {
		path := t.TempDir()
		for _, name := range left {
			if err := os.WriteFile(filepath.Join(path, name), []byte("go"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var refused *RefusedError
		if _, err := Open(path); !errors.As(err, &refused) || !strings.Contains(refused.Remedy, "restore again") {
			t.Errorf("%s: a start says %v", left, err)
		}
		if r, err := Examine(path); err != nil || r.Refused == nil {
			t.Errorf("%s: the doctor says %v, %v", left, r.Verdict(), err)
		}
		if err := Plant(path, planting("good one")); err != nil {
			t.Errorf("%s: %v", left, err)
		}
		mustOpenDir(t, path)
	}
}

// TestPlantVerifiesTheCopy: a copy that does not verify leaves nothing that counts.
func TestPlantVerifiesTheCopy(t *testing.T) {
	path := t.TempDir()
	if err := Plant(path, planting("bad")); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Fatal(err)
	}
	if left := readTree(t, path); len(left) != 1 { // the lock
		t.Errorf("left: %v", left)
	}
	if _, known := mustOpenDir(t, path).Identity(); known {
		t.Error("the directory has an identity")
	}
}

// TestWriteVerified: the old file stays until the new one is verified.
func TestWriteVerified(t *testing.T) {
	path := filepath.Join(t.TempDir(), "backup")
	p := planting("good one")
	if n, err := WriteVerified(path, p.Body, p.Verify); err != nil || n != 8 {
		t.Fatal(n, err)
	}
	p = planting("bad")
	if _, err := WriteVerified(path, p.Body, p.Verify); err == nil {
		t.Error("a bad body is written")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "good one" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := os.Stat(path + ".tmp"); err == nil {
		t.Error("a temporary file is left")
	}
}
