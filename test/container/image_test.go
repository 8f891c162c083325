package container

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	testVersion = "0.0.0-test"
	testCommit  = "0123456789abcdef"
	baseImage   = "gcr.io/distroless/static-debian12:nonroot"
	// pullTimeout is how long a registry may take to respond.
	pullTimeout = time.Minute
	memoryLimit = 256 << 20
)

// intermediate lists images that the older builder leaves behind.
var intermediate = regexp.MustCompile(`(?m)^ ---> ([0-9a-f]{12})$`)

// buildImage builds from the Dockerfile and returns the image's name.
func buildImage(t *testing.T, run string) string {
	t.Helper()
	image := run + ":image"
	args := []string{"build", "--force-rm", "--tag", image, "--build-arg", "VERSION=" + testVersion, "--build-arg", "COMMIT=" + testCommit}
	if err := pull(baseImage); err != nil {
		t.Logf("no registry was reached (%v), so that both base images are made here: the Go tool chain and modules of this machine with a shell, and an empty one. "+
			"UNPROVEN: that the images named in the Dockerfile exist and suit, and that modules can be downloaded in a build.", err)
		args = append(args, "--network", "none", "--build-arg", "BUILD_IMAGE="+importBuildBase(t, run), "--build-arg", "BASE_IMAGE="+importEmptyBase(t, run))
	}
	begin := time.Now()
	cmd := exec.Command("docker", append(args, ".")...)
	cmd.Dir = repository
	out, err := cmd.CombinedOutput()
	for _, m := range intermediate.FindAllStringSubmatch(string(out), -1) {
		t.Cleanup(func() { removeUntagged(m[1]) })
	}
	if err != nil {
		t.Fatalf("docker build: %v\n%s", err, out)
	}
	tidy(t, "rmi", "--force", image)
	t.Logf("docker build: %v; UNPROVEN: other platforms than this one", time.Since(begin).Round(time.Second))
	return image
}

// removeUntagged removes the images left behind. Most are gone together with the
// images built on them, and an image with a name belongs to somebody.
func removeUntagged(image string) {
	tags, err := exec.Command("docker", "image", "inspect", "--format", "{{len .RepoTags}}", image).Output()
	if err == nil && strings.TrimSpace(string(tags)) == "0" {
		_ = exec.Command("docker", "rmi", "--force", image).Run() // a failure only costs disk space
	}
}

// pull asks the registry for an image.
func pull(image string) error {
	ctx, cancel := context.WithTimeout(context.Background(), pullTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, "docker", "pull", "--quiet", image).CombinedOutput()
	if err != nil {
		return errors.New(strings.TrimSpace(string(out)) + " " + err.Error())
	}
	return nil
}

// testImage examines the image that was built.
func testImage(t *testing.T, image string) {
	var config struct {
		User, StopSignal string
		Entrypoint       []string
		ExposedPorts     map[string]any
		Volumes          map[string]any
		Labels           map[string]string
		Healthcheck      struct{ Test []string }
	}
	if err := json.Unmarshal([]byte(docker(t, "image", "inspect", "--format", "{{json .Config}}", image)), &config); err != nil {
		t.Fatal(err)
	}
	if config.User != user+":"+user || config.StopSignal != "SIGTERM" || !slices.Equal(config.Entrypoint, []string{binary}) {
		t.Errorf("%+v", config)
	}
	if config.Volumes["/var/lib/kvd"] == nil || config.ExposedPorts["12380/tcp"] == nil || config.ExposedPorts["12379/tcp"] == nil {
		t.Errorf("volumes %v, ports %v", config.Volumes, config.ExposedPorts)
	}
	if !slices.Equal(config.Healthcheck.Test, []string{"CMD", binary, "healthcheck"}) {
		t.Errorf("health check %q", config.Healthcheck.Test)
	}
	if l := config.Labels; l["org.opencontainers.image.version"] != testVersion || l["org.opencontainers.image.revision"] != testCommit {
		t.Errorf("labels %v", l)
	}
	if out := docker(t, "run", "--rm", image, "version"); !strings.Contains(out, testVersion) || !strings.Contains(out, testCommit) {
		t.Errorf("kvd version:\n%s", out)
	}
	t.Logf("the image has %s bytes", docker(t, "image", "inspect", "--format", "{{.Size}}", image))
}

// testAlone runs a single locked-down container with a memory limit.
func testAlone(t *testing.T, run, image string) {
	name := run + "-alone"
	docker(t, "run", "--detach", "--name", name, "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
		"--network", "none", "--memory", fmt.Sprint(memoryLimit), "--health-interval", healthInterval, image)
	tidy(t, "rm", "--force", "--volumes", name)
	awaitHealth(t, name)
	docker(t, "exec", name, binary, "healthcheck", "--ready")
	demandUser(t, name)
	demandPrivate(t, name)
	stopGracefully(t, name)
	out, err := exec.Command("docker", "logs", name).CombinedOutput()
	if err != nil || !strings.Contains(string(out), fmt.Sprintf(`"allowed_bytes":%d`, memoryLimit)) {
		t.Errorf("the node says nothing of its limit of %d bytes: %v\n%s", memoryLimit, err, out)
	}
}

// demandUser checks the user of the processes of a container.
func demandUser(t *testing.T, id string) {
	t.Helper()
	for _, line := range strings.Split(docker(t, "top", id, "-o", "pid,uid"), "\n")[1:] {
		if fields := strings.Fields(line); len(fields) != 2 || fields[1] != user {
			t.Errorf("a process runs as another user than %s: %s", user, line)
		}
	}
}

// demandPrivate checks the mode of the data directory.
func demandPrivate(t *testing.T, id string) {
	t.Helper()
	out, err := exec.Command("docker", "cp", id+":/var/lib/kvd", "-").Output()
	if err != nil {
		t.Fatalf("docker cp: %v", err)
	}
	head, err := tar.NewReader(bytes.NewReader(out)).Next()
	if err != nil || head.FileInfo().Mode().Perm() != 0o700 || fmt.Sprint(head.Uid) != user {
		t.Errorf("the data directory: %+v, %v", head, err)
	}
}
