package main

import (
	"encoding/json"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/kvd-io/kvd/internal/settings"
)

// imageUser is the user of kvd in the image.
const imageUser = 65532

const imageBinary = "/usr/local/bin/kvd"

// dockerfile returns the arguments of the last stage's instructions.
func dockerfile(t *testing.T) map[string][]string {
	t.Helper()
	b, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string][]string)
	for line := range strings.Lines(strings.ReplaceAll(string(b), "\\\n", " ")) {
		name, rest, ok := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case !ok || name == "#":
		case name == "FROM":
			all = map[string][]string{name: {rest}}
		default:
			all[name] = append(all[name], strings.TrimSpace(rest))
		}
	}
	return all
}

// TestDockerfile compares the image's settings with kvd's.
func TestDockerfile(t *testing.T) {
	d := dockerfile(t)
	user := strconv.Itoa(imageUser)
	for name, want := range map[string]string{
		"USER": user + ":" + user, "STOPSIGNAL": "SIGTERM", "FROM": "${BASE_IMAGE}", "ENTRYPOINT": `["` + imageBinary + `"]`,
	} {
		if !slices.Equal(d[name], []string{want}) {
			t.Errorf("%s is %q, want %s", name, d[name], want)
		}
	}
	s := resolve(t, strings.Fields(d["ENV"][0]))
	if !slices.Equal(d["VOLUME"], []string{s.DataDir}) || !slices.Contains(d["COPY"], "--from=build --chown="+user+":"+user+" /out/data "+s.DataDir) {
		t.Errorf("the data goes to %s; volume %v, %v", s.DataDir, d["VOLUME"], d["COPY"])
	}
	if want := portOf(t, s.ListenClient[0]) + " " + portOf(t, settings.DefaultPeerURL); !slices.Equal(d["EXPOSE"], []string{want}) {
		t.Errorf("exposed: %v, want %s", d["EXPOSE"], want)
	}
	_, check, _ := strings.Cut(d["HEALTHCHECK"][0], " CMD ")
	var words []string
	if err := json.Unmarshal([]byte(check), &words); err != nil {
		t.Fatalf("the health check %s needs a shell: %v", check, err)
	}
	holdCheck(t, words)
}

func portOf(t *testing.T, text string) string {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u.Port()
}

// holdCheck has kvd parse the command of a health check.
func holdCheck(t *testing.T, words []string) {
	t.Helper()
	if len(words) < 2 || words[0] != imageBinary {
		t.Fatalf("the health check is %q", words)
	}
	cmd, rest, err := rootCommand(environment{}).Find(words[1:])
	if err != nil || cmd.Name() != "healthcheck" {
		t.Fatalf("%q: %v", words, err)
	}
	if err := cmd.ParseFlags(rest); err != nil {
		t.Errorf("%q: %v", words, err)
	}
}

// composeFile is the part of compose.yaml that concerns kvd.
type composeFile struct {
	Services map[string]struct {
		Restart     string
		Grace       string `yaml:"stop_grace_period"`
		Environment map[string]string
		Volumes     []string
		Ports       []string
		Networks    map[string]struct{ Aliases []string }
		Healthcheck struct{ Test []string }
	}
	Networks map[string]struct{ Internal bool }
	Volumes  map[string]any
}

// TestComposeFile compares compose.yaml with kvd, and its parts with each other.
func TestComposeFile(t *testing.T) {
	b, err := os.ReadFile("../../compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var f composeFile
	if err := yaml.Unmarshal(b, &f); err != nil {
		t.Fatal(err)
	}
	image := strings.Fields(dockerfile(t)["ENV"][0])
	ids := make(map[uint64]bool)
	for name, svc := range f.Services {
		environ := slices.Clone(image)
		for k, v := range svc.Environment {
			environ = append(environ, k+"="+v)
		}
		s := resolve(t, environ)
		ids[s.ID] = true
		if len(s.Cluster) != len(f.Services) || !slices.Equal(hostsOf([]string{s.Cluster[s.ID-1].URL}), svc.Networks["peers"].Aliases) {
			t.Errorf("%s is member %d of %v, and is called %v", name, s.ID, s.Cluster, svc.Networks["peers"].Aliases)
		}
		volume, dir, _ := strings.Cut(svc.Volumes[0], ":")
		if _, ok := f.Volumes[volume]; !ok || volume != name || dir != s.DataDir {
			t.Errorf("%s has %s for its data in %s", name, svc.Volumes[0], s.DataDir)
		}
		if p := svc.Ports; len(p) != 1 || !strings.HasPrefix(p[0], "127.0.0.1:") || !strings.HasSuffix(p[0], ":"+portOf(t, s.ListenClient[0])) {
			t.Errorf("%s publishes %v, clients are on %v", name, p, s.ListenClient)
		}
		if grace, err := time.ParseDuration(svc.Grace); err != nil || grace <= 10*time.Second {
			t.Errorf("%s is killed after %q", name, svc.Grace)
		}
		if svc.Restart != "on-failure:5" {
			t.Errorf("%s: restart is %q: a node that refuses to run would be started for ever", name, svc.Restart)
		}
		holdCheck(t, svc.Healthcheck.Test[1:])
	}
	if len(ids) != 3 || !f.Networks["peers"].Internal {
		t.Errorf("ids %v; the members' network: %+v", ids, f.Networks["peers"])
	}
}
