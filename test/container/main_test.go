// Package container tests the image and compose.yaml the way users run them:
// Docker builds the image from the Dockerfile, and three containers on private
// networks are killed, cut off, healed and restarted under load.
//
// It takes minutes, so it runs only with KVD_E2E=full, and only if a Docker
// engine answers. Everything that it creates is named kvd-test-RANDOM and removed
// at the end.
package container

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const (
	// repository is the root of the source tree, relative to this package.
	repository = "../.."
	// patience is how long to wait for a condition that normally holds within
	// seconds: generous, because the machine may be busy.
	patience     = 90 * time.Second
	pollInterval = 50 * time.Millisecond
	binary       = "/usr/local/bin/kvd"
	// healthInterval replaces the intervals of the image and of compose.yaml: a container
	// is healthy after its first check, which comes after that.
	healthInterval = "1s"
	user           = "65532"
	// grace is how long a stop may take before Docker kills the container, as in
	// compose.yaml.
	grace = 15 * time.Second
)

// TestContainers builds the image and uses it. Each part builds on the previous
// ones.
func TestContainers(t *testing.T) {
	if os.Getenv("KVD_E2E") == "" {
		t.Skip("SKIPPED: the container test takes minutes; KVD_E2E=full runs it")
	}
	if out, err := exec.Command("docker", "version", "--format", "{{.Server.Version}}").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: no Docker engine answers, so the Dockerfile and compose.yaml were NOT tried: %v: %s", err, out)
	} else {
		t.Logf("Docker engine %s", out)
	}
	run := newName(t)
	image := buildImage(t, run)
	t.Run("image", func(t *testing.T) { testImage(t, image) })
	t.Run("alone", func(t *testing.T) { testAlone(t, run, image) })
	t.Run("cluster", func(t *testing.T) { testCluster(t, run, image) })
}

// newName returns the name for everything that this run creates.
func newName(t *testing.T) string {
	t.Helper()
	b := make([]byte, 4)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return "kvd-test-" + hex.EncodeToString(b)
}

// docker runs a docker command and returns its output.
func docker(t *testing.T, args ...string) string {
	t.Helper()
	return command(t, append([]string{"docker"}, args...)...)
}

func command(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = repository
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// tidy runs a clean-up command after the test.
func tidy(t *testing.T, args ...string) {
	t.Helper()
	t.Cleanup(func() {
		if out, err := exec.Command("docker", args...).CombinedOutput(); err != nil {
			t.Errorf("left behind: docker %s: %v: %s", strings.Join(args, " "), err, out)
		}
	})
}

// eventually waits until check returns nil.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, patience, err)
		}
		<-ticker.C
	}
}

// awaitHealth waits until Docker reports the given health of a container.
func awaitHealth(t *testing.T, id string) {
	t.Helper()
	eventually(t, "the container gets healthy", func() error {
		if is := docker(t, "inspect", "--format", "{{.State.Health.Status}}", id); is != "healthy" {
			return fmt.Errorf("it is %s: %s", is, docker(t, "inspect", "--format", "{{json .State}}", id))
		}
		return nil
	})
}

// stopGracefully stops a container as docker does, and requires that it exited on
// its own.
func stopGracefully(t *testing.T, id string) {
	t.Helper()
	begin := time.Now()
	docker(t, "stop", "--time", fmt.Sprint(int(grace.Seconds())), id)
	took := time.Since(begin).Round(time.Millisecond)
	if state := docker(t, "inspect", "--format", "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}", id); state != "exited 0 false" {
		t.Errorf("docker stop after %v: %s\n%s", took, state, logs(id))
		return
	}
	t.Logf("docker stop: exit code 0 after %v", took)
}

// logs returns the last lines of a container's log.
func logs(id string) string {
	out, err := exec.Command("docker", "logs", "--tail", "20", id).CombinedOutput()
	return fmt.Sprintf("%s%v", out, err)
}
