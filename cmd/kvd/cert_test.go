package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/certs"
)

// kvd runs a command line in this process.
func kvd(args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = run(environment{args: args, stdout: &out, stderr: &err})
	return code, out.String(), err.String()
}

func TestCertInit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	code, out, stderr := kvd("cert", "init", "--dir", dir, "--host", "n1.example,10.0.0.1", "--host", "n2.example")
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	for _, says := range []string{"member2.pem", "n1.example, 10.0.0.1, localhost", "--peer-ca-file " + filepath.Join(dir, "ca.pem"), "--cacert", "ca-key.pem off the nodes"} {
		if !strings.Contains(out, says) {
			t.Errorf("the output does not say %q:\n%s", says, out)
		}
	}
	for i, hosts := range [][]string{{"n1.example", "10.0.0.1", "localhost", "127.0.0.1", "::1"}, {"n2.example", "localhost", "::1"}} {
		member := filepath.Join(dir, []string{"member1", "member2"}[i])
		_, err := certs.Load(certs.Config{
			Files:  certs.Files{Cert: member + ".pem", Key: member + "-key.pem", CA: filepath.Join(dir, "ca.pem")},
			Mutual: true, Hosts: hosts,
		})
		if err != nil {
			t.Error(err)
		}
	}
	if leaf := readCertificate(t, filepath.Join(dir, "client.pem")); slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || len(leaf.DNSNames) > 0 {
		t.Error("the client's certificate is good for servers")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 8 {
		t.Fatalf("%d files, %v", len(entries), err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if isKey := strings.HasSuffix(e.Name(), "-key.pem"); isKey != (info.Mode().Perm() == 0o600) {
			t.Errorf("%s has mode %v", e.Name(), info.Mode())
		}
	}
}

func readCertificate(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func TestCertInitTouchesNothingThatExists(t *testing.T) {
	dir := t.TempDir()
	client := filepath.Join(dir, "client.pem")
	if err := os.WriteFile(client, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := kvd("cert", "init", "--dir", dir)
	if code != exitFailed || !strings.Contains(stderr, client+" exists") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if entries, _ := fs.Glob(os.DirFS(dir), "*"); !slices.Equal(entries, []string{"client.pem"}) {
		t.Errorf("%v are there now", entries)
	}
	if data, _ := os.ReadFile(client); string(data) != "precious" {
		t.Error("the file was changed")
	}
}

func TestCertUsage(t *testing.T) {
	for says, args := range map[string][]string{
		"needs a subcommand":      {},
		`unknown command "show"`:  {"show"},
		"--members is 65":         {"init", "--members", "65"},
		"--host is given 2 times": {"init", "--members", "3", "--host", "a", "--host", "b"},
		"leave out the scheme":    {"init", "--host", "https://a"},
		`"a:1" is not a name`:     {"init", "--host", "a:1"},
		"--days is 0":             {"init", "--days", "0"},
		"takes no arguments":      {"init", "x"},
	} {
		if code, _, stderr := kvd(append([]string{"cert"}, args...)...); code != exitUsage || !strings.Contains(stderr, says) {
			t.Errorf("%q: exit code %d: %s", args, code, stderr)
		}
	}
}
