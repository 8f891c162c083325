package e2e

import (
	"path/filepath"
	"strings"
	"testing"
)

// wholeDocuments are the documents whose blocks of commands of one kind all run as a test.
var wholeDocuments = map[string]struct{ kind, test string }{
	"docs/api.md":     {"console", "TestAPIDocument"},
	"docs/auth.md":    {"console", "TestAuthDocument"},
	"docs/cli.md":     {"console", "TestCommandLineDocument"},
	"docs/migrate.md": {"console", "TestMigrationDocument"},
	"docs/recipes.md": {"console", "TestRecipes"},
	"docs/tour.md":    {"console", "TestTour"},
	"docs/backup.md":  {"sh", "TestBackupDrill"},
}

// otherBlocks are all other blocks of commands, by document and first line, and where they
// run, or why they do not.
var otherBlocks = map[string]map[string]string{
	"README.md": {
		"go run ./cmd/kvd": "TestReadme starts the binary; .ci/run does the rest",
		"curl -L http://127.0.0.1:12380/my-key -XPUT": "TestReadme", "curl -XPUT http://127.0.0.1:12380/v1/kv/app/color": "TestReadme",
		"curl -i http://127.0.0.1:12380/v1/kv/hits": "TestReadme", "curl http://127.0.0.1:12380/v1/txn": "TestReadme",
		"kvd kv put app/color": "TestReadme", "curl -i http://127.0.0.1:12380/v1/kv/absent": "TestReadme",
		"make cluster": "TestWalkthrough2Goreman runs the Procfile", "kvd --id 1 --cluster http://10.0.0.1": "TestReadme",
		"curl 'http://127.0.0.1:12380/v1/members?pretty'": "TestReadme", "curl -L http://127.0.0.1:12380/4": "TestReadme",
		"curl -L http://127.0.0.1:12380/3": "TestReadme", "kvd auth init": "TestReadme",
	},
	"docs/audit.md": {"kvd --audit-log": "TestOtherDocuments"},
	"docs/auth.md": {
		"kvd --auth-cert-user cn": "a part of a command line; TestCertUser has the names",
		"kvd auth import":         "test/conformance: sidebyside, with a real etcd",
	},
	"docs/cli.md": {
		"if": "the grammar of kvd kv txn, which the example after it uses", "kvd lock nightly-report": "test/e2e/locks_test.go",
	},
	"docs/deploy.md": {
		"docker build": "test/container builds the image, where there is Docker", "docker compose up": "test/container runs compose.yaml, where there is Docker",
		"kvd cert init": "TestOtherDocuments, but for what needs a cluster of Kubernetes",
	},
	"docs/dialects.md": {"kvd --dialects raftexample": "TestOtherDocuments", "kvd --dialects raftd": "TestOtherDocuments"},
	"docs/etcd.md": {
		"kvd --listen-etcd": "TestOtherDocuments; etcdctl runs in test/conformance", "curl http://10.0.0.1:2379": "TestOtherDocuments",
		"etcdctl user add root": "test/conformance: sidebyside",
	},
	"docs/kubernetes-store.md": {"kvd --listen-etcd": "test/conformance: Kubernetes' storage layer; it needs a kube-apiserver"},
	"docs/migrate.md":          {"etcdutl snapshot status": "test/conformance: sidebyside"},
	"docs/operations.md": {
		"curl http://127.0.0.1:12380/v1/operator/log-level": "TestOtherDocuments", "systemctl restart kvd": "TestOtherDocuments",
		"curl -XPATCH http://127.0.0.1:12380/v1/settings": "TestOtherDocuments", "curl -X DELETE http://HOST1": "TestOtherDocuments",
		"curl -X PUT http://HOST2:12380/v1/members/1": "TestOtherDocuments",
		"kvd --id 1 --listen-peer http://NEW1":        "TestOtherDocuments",
		"kvd: ":                                       "what kvd says", `"msg":`: "what kvd says",
	},
	"docs/performance.md": {"make bench-compare": "an hour of measurement"},
	"docs/security.md": {
		"kvd cert init": "TestSecurityDocument", "kvd --id 1 --cluster https://n1.example": "TestSecurityDocument", "curl --unix-socket": "TestSecurityDocument",
	},
	"docs/testing.md": {"make sim": "the long tests themselves", "make conformance": "the long tests themselves"},
}

// TestEveryDocumentRuns: each block of commands in the documents runs as a test, or says here
// why not.
func TestEveryDocumentRuns(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(repository, "docs", "*.md"))
	if err != nil || len(paths) < 20 {
		t.Fatalf("%d documents: %v", len(paths), err)
	}
	used := make(map[string]bool)
	for _, path := range append(paths, filepath.Join(repository, "README.md")) {
		name, err := filepath.Rel(repository, path)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range docBlocks(t, name) {
			kind, file, _ := strings.Cut(b.info, " ")
			if (kind != "sh" && kind != "console" && kind != "") || file != "" || kind != "" && kind == wholeDocuments[name].kind {
				continue
			}
			if !accounted(name, b.lines[0], used) {
				t.Errorf("%s:%d: %q is in no test: run it in one, and name that in otherBlocks", name, b.line, b.lines[0])
			}
		}
	}
	for name, blocks := range otherBlocks {
		for first := range blocks {
			if !used[name+" "+first] {
				t.Errorf("otherBlocks has %q of %s, which is gone", first, name)
			}
		}
	}
}

func accounted(name, line string, used map[string]bool) bool {
	for first := range otherBlocks[name] {
		if strings.HasPrefix(line, first) {
			used[name+" "+first] = true
			return true
		}
	}
	return false
}
