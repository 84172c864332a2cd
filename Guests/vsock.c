// SPDX-License-Identifier: Apache-2.0
//
// Sockets of AF_VSOCK for the device tests' guest. A static program, built by Scripts/fetch-guest.sh.
//
// usage: vsock connect ADDRESS PORT    sends its input, prints what comes back
//        vsock echo PORT COUNT         sends COUNT connections back what they send, one after the other
//        vsock hold PORT COUNT         takes COUNT connections at a time and reads nothing until all are there,
//                                      then what each has sent; prints the number of bytes of each

#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char buffer[65536];

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static struct sockaddr_vm address(unsigned cid, unsigned port) {
  struct sockaddr_vm address;
  memset(&address, 0, sizeof address);
  address.svm_family = AF_VSOCK;
  address.svm_cid = cid;
  address.svm_port = port;
  return address;
}

static void write_all(int file, const char *bytes, ssize_t count) {
  while (count > 0) {
    ssize_t done = write(file, bytes, count);
    if (done <= 0) fail("write");
    bytes += done;
    count -= done;
  }
}

static int listener(unsigned port) {
  int file = socket(AF_VSOCK, SOCK_STREAM, 0);
  struct sockaddr_vm own = address(VMADDR_CID_ANY, port);
  if (file < 0) fail("socket");
  if (bind(file, (struct sockaddr *)&own, sizeof own)) fail("bind");
  if (listen(file, 64)) fail("listen");
  printf("DEVICE listens %u\n", port);
  fflush(stdout);
  return file;
}

static void talk(unsigned cid, unsigned port) {
  int file = socket(AF_VSOCK, SOCK_STREAM, 0), input = 0;
  struct sockaddr_vm other = address(cid, port);
  if (file < 0) fail("socket");
  if (connect(file, (struct sockaddr *)&other, sizeof other)) fail("connect");
  for (;;) {
    struct pollfd files[2] = {{file, POLLIN, 0}, {input, POLLIN, 0}};
    if (poll(files, 2, -1) < 0) fail("poll");
    if (files[1].revents) {
      ssize_t count = read(input, buffer, sizeof buffer);
      if (count > 0) {
        write_all(file, buffer, count);
      } else {
        shutdown(file, SHUT_WR);
        input = -1;
      }
    }
    if (files[0].revents) {
      ssize_t count = read(file, buffer, sizeof buffer);
      if (count < 0) fail("read");
      if (count == 0) return;
      write_all(1, buffer, count);
    }
  }
}

static void echo(unsigned port, int count) {
  int file = listener(port);
  while (count-- > 0) {
    int client = accept(file, NULL, NULL);
    ssize_t size;
    if (client < 0) fail("accept");
    while ((size = read(client, buffer, sizeof buffer)) > 0) write_all(client, buffer, size);
    close(client);
  }
}

static void hold(unsigned port, int count) {
  int file = listener(port), *clients = calloc(count, sizeof *clients);
  for (int n = 0; n < count; n++) {
    clients[n] = accept(file, NULL, NULL);
    if (clients[n] < 0) fail("accept");
  }
  for (int n = 0; n < count; n++) {
    ssize_t size, total = 0;
    while ((size = read(clients[n], buffer, sizeof buffer)) > 0) total += size;
    printf("DEVICE held %zd\n", total);
    close(clients[n]);
  }
}

int main(int count, char **words) {
  if (count == 4 && !strcmp(words[1], "connect")) {
    talk(atoi(words[2]), atoi(words[3]));
  } else if (count == 4 && !strcmp(words[1], "echo")) {
    echo(atoi(words[2]), atoi(words[3]));
  } else if (count == 4 && !strcmp(words[1], "hold")) {
    hold(atoi(words[2]), atoi(words[3]));
  } else {
    fprintf(stderr, "usage: vsock connect ADDRESS PORT | echo PORT COUNT | hold PORT COUNT\n");
    return 64;
  }
  return 0;
}
