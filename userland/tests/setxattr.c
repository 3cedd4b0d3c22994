// setxattr FILE NAME VALUE: busybox has no setfattr.
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>

int main(int argc, char **argv) {
    if (argc != 4 || setxattr(argv[1], argv[2], argv[3], strlen(argv[3]), 0)) {
        perror("setxattr");
        return 1;
    }
    return 0;
}
