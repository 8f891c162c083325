package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/settings"
)

const systemdDir = "../../deploy/systemd"

// unitFile returns the assignments of a unit by section and name.
type unitFile map[string][]string

func readUnit(t *testing.T, path string) unitFile {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	u, section := make(unitFile), ""
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			section = strings.Trim(line, "[]")
		default:
			name, value, ok := strings.Cut(line, "=")
			if !ok {
				t.Fatalf("%s: %q is no assignment", path, line)
			}
			u[section+"."+name] = append(u[section+"."+name], value)
		}
	}
	return u
}

func (u unitFile) one(t *testing.T, name string) string {
	t.Helper()
	if len(u[name]) != 1 {
		t.Fatalf("%s is set %d times", name, len(u[name]))
	}
	return u[name][0]
}

func (u unitFile) seconds(t *testing.T, name string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(u.one(t, name))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return d
}

// TestUnitFile compares the unit with kvd: exit codes, times, names of settings.
func TestUnitFile(t *testing.T) {
	u := readUnit(t, filepath.Join(systemdDir, "kvd.service"))
	if got, want := u.one(t, "Service.RestartPreventExitStatus"), strconv.Itoa(exitUsage)+" "+strconv.Itoa(exitRefused); got != want {
		t.Errorf("no restart after %q, want %q", got, want)
	}
	if u.one(t, "Service.Restart") != "on-failure" {
		t.Error("a removed member, which exits with 0, would be started again")
	}
	if u.one(t, "Service.Type") != "notify" {
		t.Error("the type is not notify, the only one that systemd 249 to 252 knows for kvd's protocol")
	}
	if got, want := u.one(t, "Service.ExecReload"), "/bin/kill -HUP $MAINPID"; got != want {
		t.Errorf("a reload runs %q, want %q", got, want)
	}
	if stop := u.seconds(t, "Service.TimeoutStopSec"); stop < 10*time.Second {
		t.Errorf("systemd kills after %v", stop)
	}
	if start := u.seconds(t, "Service.TimeoutStartSec"); start < 2*reportPace {
		t.Errorf("systemd gives up a start after %v, before kvd reports that it is still starting", start)
	}
	if dog := u.seconds(t, "Service.WatchdogSec"); dog < pingsInTime*5*time.Second {
		t.Errorf("the watchdog bites after %v", dog)
	}
	for name, want := range map[string]string{
		"NoNewPrivileges": "yes", "ProtectSystem": "strict", "StateDirectory": "kvd", "StateDirectoryMode": "0700", "LimitCORE": "0",
	} {
		if got := u.one(t, "Service."+name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if n, err := strconv.Atoi(u.one(t, "Service.LimitNOFILE")); err != nil || n < 40000 {
		t.Errorf("LimitNOFILE: %d, %v", n, err)
	}
	s := resolve(t, append(strings.Fields(u.one(t, "Service.Environment")), variables(t, filepath.Join(systemdDir, "kvd.env"))...))
	if want := "/var/lib/" + u.one(t, "Service.StateDirectory"); s.DataDir != want {
		t.Errorf("the data goes to %s, the directory is %s", s.DataDir, want)
	}
	if !slices.ContainsFunc(s.ListenClient, func(l string) bool {
		return strings.HasPrefix(l, "unix:///run/"+u.one(t, "Service.RuntimeDirectory")+"/")
	}) {
		t.Errorf("the socket is not in the runtime directory: %v", s.ListenClient)
	}
}

// resolve reads the settings as a node with this environment would.
func resolve(t *testing.T, environ []string) *settings.Settings {
	t.Helper()
	s, err := settings.Load(nil, environ)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// variables returns the variables of an environment file.
func variables(t *testing.T, path string) (lines []string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			lines = append(lines, line)
		}
	}
	return lines
}

// TestUnitFileForSystemd has systemd itself verify the unit.
func TestUnitFileForSystemd(t *testing.T) {
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed, so that only kvd's own reading of the unit was tested")
	}
	b, err := os.ReadFile(filepath.Join(systemdDir, "kvd.service"))
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(b), "ExecStart=/usr/local/bin/kvd\n", "ExecStart="+self+"\n", 1)
	unit := filepath.Join(t.TempDir(), "kvd.service")
	if err := os.WriteFile(unit, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(tool, "verify", "--man=no", unit).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "kvd.service") {
			t.Errorf("systemd says: %s", line)
		}
	}
	t.Logf("systemd-analyze verify: %v\n%s", err, out)
}
