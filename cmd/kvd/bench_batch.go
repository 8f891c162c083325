package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// postBatch sends the lines of a batch and reads an answer to each. It names
// the first answer that is an error.
func postBatch(ctx context.Context, client *http.Client, target string, body []byte, lines int) (code string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		_, err := io.Copy(io.Discard, resp.Body)
		return fmt.Sprint(resp.StatusCode), err
	}
	answers := bufio.NewScanner(resp.Body)
	seen := 0
	for ; answers.Scan(); seen++ {
		if line := answers.Bytes(); code == "" && !bytes.Contains(line, []byte(`"status":20`)) {
			code = batchCode(line)
		}
	}
	if err := answers.Err(); err != nil {
		return "", err
	}
	if code == "" && seen != lines {
		code = "answers missing"
	}
	return code, nil
}

// batchCode names the error of an answer's line.
func batchCode(line []byte) string {
	var answer struct {
		Status int    `json:"status"`
		Code   string `json:"code"`
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return "unreadable answer"
	}
	return fmt.Sprintf("%d %s", answer.Status, answer.Code)
}
