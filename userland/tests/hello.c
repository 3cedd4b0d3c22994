// The least program: says hello, names itself and its arguments. Used to check the build and the loading of each kind of ELF file.
#include <stdio.h>

int main(int argc, char **argv) {
    printf("hello from %s", argv[0]);
    for (int i = 1; i < argc; i++) {
        printf(" %s", argv[i]);
    }
    putchar('\n');
    return 0;
}
